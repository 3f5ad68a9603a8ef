#include "kernels/core/grain.h"
#include "kernels/core/simd.h"
#include "kernels/group_mix.h"

namespace tessera::cpu {

namespace {

/// body(token, group, first element of the group's heads) for all of them. A group's heads lie side
/// by side: `width` elements.
template <class Body>
void for_groups(ThreadPool& threads, const Shape& x, int64_t groups, const Body& body) {
  const int64_t row = x[1] * x[2];
  const int64_t width = row / groups;
  threads.for_ranges(x[0], row_grain(row), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t c = 0; c < groups; ++c) body(t, c, t * row + c * width, width);
    }
  });
}

}  // namespace

void mix_groups(ThreadPool& threads, const MixGroups& a) {
  const auto shares = a.shares.as<float>();
  with_float_type(a.y.dtype(), [&]<class T>() {
    T* const y = a.y.as<T>().data();
    const T* const full = a.a.as<T>().data();
    const T* const other = a.b.as<T>().data();
    for_groups(threads, a.y.shape(), std::ssize(shares),
               [=](int64_t, int64_t c, int64_t first, int64_t width) {
                 const float w = shares[static_cast<size_t>(c)];
                 for_lanes(width, [&](int64_t i, int64_t lanes) {
                   const F32x16 mixed = w * load_first(full + first + i, lanes) +
                                        (1 - w) * load_first(other + first + i, lanes);
                   store_first(y + first + i, mixed, lanes);
                 });
               });
  });
}

void mix_groups_backward(ThreadPool& threads, const MixGroupsBackward& a) {
  const auto shares = a.shares.as<float>();
  const int64_t tokens = a.dy.shape()[0];
  float* const slopes = a.slopes.as<float>().data();
  with_float_type(a.dy.dtype(), [&]<class T>() {
    T* const da = a.da.as<T>().data();
    T* const db = a.db.as<T>().data();
    const T* const dy = a.dy.as<T>().data();
    const T* const full = a.a.as<T>().data();
    const T* const other = a.b.as<T>().data();
    for_groups(threads, a.dy.shape(), std::ssize(shares),
               [=](int64_t t, int64_t c, int64_t first, int64_t width) {
                 const float w = shares[static_cast<size_t>(c)];
                 F32x16 slope{};
                 for_lanes(width, [&](int64_t i, int64_t lanes) {
                   const int64_t at = first + i;
                   const F32x16 d = load_first(dy + at, lanes);
                   slope += d * (load_first(full + at, lanes) - load_first(other + at, lanes));
                   store_first(da + at, w * d, lanes);
                   store_first(db + at, (1 - w) * d, lanes);
                 });
                 slopes[c * tokens + t] = sum(slope);
               });
  });
}

}  // namespace tessera::cpu
