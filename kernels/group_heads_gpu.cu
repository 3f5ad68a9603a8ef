#include "kernels/core/group_list.cuh"
#include "kernels/core/pointwise.cuh"
#include "kernels/group_heads.h"

// A part of a row of x is a row of y: contiguous in both. What a group holds is read once and
// written once; add_groups reads x too.

namespace tessera::gpu {
namespace {

template <class T>
struct Take {
  T* y;
  const T* x;
  int64_t row;    // elements of a token's heads
  int64_t width;  // of one group of them
  RowSplit split;
  GroupList list;
};

template <class T, int N>
__global__ void __launch_bounds__(kMapThreads) take_rows(Take<T> a) {
  const RowPlace at = place_in(a.split);
  if (at.item < 0) return;
  const int c = static_cast<int>(blockIdx.z);
  const int64_t j = int64_t{at.item} * N;
  const T* const from = a.x + at.row * a.row + a.list.groups[c] * a.width + j;
  T* const to = a.y + ((a.list.first + c) * a.split.rows + at.row) * a.width + j;
  copy_numbers<N>(to, from);
}

template <class X, class Y>
struct AddTo {
  X* x;
  const Y* y;
  int64_t row;
  int64_t width;
  RowSplit split;
  GroupList list;
};

/// A group may be in the list twice, so a lane adds all that goes to its place, in the list's
/// order.
template <class X, class Y, int N>
__global__ void __launch_bounds__(kMapThreads) add_rows(AddTo<X, Y> a) {
  const RowPlace at = place_in(a.split);
  if (at.item < 0) return;
  const int c = static_cast<int>(blockIdx.z);
  const int32_t group = a.list.groups[c];
  for (int before = 0; before < c; ++before) {
    if (a.list.groups[before] == group) return;
  }
  const int64_t j = int64_t{at.item} * N;
  X* const to = a.x + at.row * a.row + group * a.width + j;
  Floats<N> sum = load_floats<N>(to);
  for (int other = c; other < a.list.count; ++other) {
    if (a.list.groups[other] != group) continue;
    const int64_t row = (a.list.first + other) * a.split.rows + at.row;
    const Floats<N> more = load_floats<N>(a.y + row * a.width + j);
    for (int i = 0; i < N; ++i) sum.at[i] += more.at[i];
    if constexpr (std::is_same_v<X, BF16>) {
      // As if each were added alone.
      for (int i = 0; i < N; ++i) sum.at[i] = to_float(from_float<BF16>(sum.at[i]));
    }
  }
  store_floats(to, sum);
}

}  // namespace

void take_groups(Stream& stream, const TakeGroups& a) {
  const int64_t tokens = a.x.shape()[0];
  const int64_t width = a.y.shape()[2];
  with_float_type(a.x.dtype(), [&]<class T>() {
    constexpr int kN = kGroup<T>;
    T* const y = a.y.as<T>().data();
    const T* const x = a.x.as<T>().data();
    const bool packed = in_packs(y, width) && in_packs(x, width);
    for_group_lists(a.groups, [&](const GroupList& list) {
      const Take<T> of{y,
                       x,
                       a.x.shape()[1] * a.x.shape()[2],
                       width,
                       RowSplit(tokens, packed ? width / kN : width),
                       list};
      launch(stream, packed ? take_rows<T, kN> : take_rows<T, 1>,
             of.split.grid(static_cast<unsigned>(list.count)), kMapThreads, 0, of);
    });
  });
}

void add_groups(Stream& stream, const AddGroups& a) {
  const int64_t tokens = a.x.shape()[0];
  const int64_t width = a.y.shape()[2];
  with_float_type(a.x.dtype(), [&]<class X>() {
    with_float_type(a.y.dtype(), [&]<class Y>() {
      if constexpr (std::is_same_v<Y, float> || std::is_same_v<X, Y>) {
        constexpr int kN = kGroup<X>;
        X* const x = a.x.as<X>().data();
        const Y* const y = a.y.as<Y>().data();
        const bool packed = in_packs(x, width) && in_packs(y, width);
        for_group_lists(a.groups, [&](const GroupList& list) {
          const AddTo<X, Y> of{x,
                               y,
                               a.x.shape()[1] * a.x.shape()[2],
                               width,
                               RowSplit(tokens, packed ? width / kN : width),
                               list};
          launch(stream, packed ? add_rows<X, Y, kN> : add_rows<X, Y, 1>,
                 of.split.grid(static_cast<unsigned>(list.count)), kMapThreads, 0, of);
        });
      }
    });
  });
}

}  // namespace tessera::gpu
