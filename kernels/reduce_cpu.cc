#include <algorithm>
#include <array>

#include "kernels/core/simd.h"
#include "kernels/reduce.h"

namespace tessera::cpu {

namespace {

using F64x8 [[gnu::vector_size(64)]] = double;

constexpr int64_t kMaxChunks = 256;
constexpr int64_t kMinChunk = 4096;
constexpr uint32_t kExponent = 0x7F800000;  // all ones in infinities and NaNs

struct Halves {
  F64x8 low;
  F64x8 high;
};

[[gnu::always_inline]] inline Halves widen(F32x16 x) {
  return {
      __builtin_convertvector(__builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7), F64x8),
      __builtin_convertvector(__builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15), F64x8)};
}

double sum_lanes(F64x8 x) {
  double total = 0;
  for (int lane = 0; lane < 8; ++lane) total += x[lane];
  return total;
}

/// part(x, count) of fixed chunks of x, added up in order.
template <class Total, class Part>
Total reduce(ThreadPool& threads, const ConstTensorView& x, Part part) {
  const int64_t count = x.elements();
  const int64_t chunk = std::max(kMinChunk, (count + kMaxChunks - 1) / kMaxChunks);
  std::array<Total, kMaxChunks> parts{};
  with_float_type(x.dtype(), [&]<class T>() {
    const T* const from = x.as<T>().data();
    threads.for_ranges(count, chunk, [&, from](int64_t begin, int64_t end) {
      parts[static_cast<size_t>(begin / chunk)] = part(from + begin, end - begin);
    });
  });
  Total total = 0;
  for (const Total& one : parts) total += one;
  return total;
}

}  // namespace

void add_sum(ThreadPool& threads, const AddSum& a) {
  a.total.as<double>()[0] +=
      reduce<double>(threads, a.x, []<class T>(const T* from, int64_t count) {
        F64x8 low{};
        F64x8 high{};
        for_lanes(count, [&](int64_t i, int64_t lanes) {
          const Halves wide = widen(load_first(from + i, lanes));
          low += wide.low;
          high += wide.high;
        });
        return sum_lanes(low + high);
      });
}

void add_sum_of_squares(ThreadPool& threads, const AddSum& a) {
  a.total.as<double>()[0] +=
      reduce<double>(threads, a.x, []<class T>(const T* from, int64_t count) {
        F64x8 low{};
        F64x8 high{};
        for_lanes(count, [&](int64_t i, int64_t lanes) {
          const Halves wide = widen(load_first(from + i, lanes));
          low += wide.low * wide.low;
          high += wide.high * wide.high;
        });
        return sum_lanes(low + high);
      });
}

int64_t count_non_finite(ThreadPool& threads, const ConstTensorView& x) {
  return reduce<int64_t>(threads, x, []<class T>(const T* from, int64_t count) {
    int64_t found = 0;
    for (int64_t i = 0; i < count; ++i) {
      found += (std::bit_cast<uint32_t>(to_float(from[i])) & kExponent) == kExponent;
    }
    return found;
  });
}

}  // namespace tessera::cpu
