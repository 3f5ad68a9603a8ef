#include <cmath>

#include "kernels/core/pointwise.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/rope.h"

// x is read and written once, in place. A lane turns the same dimensions of up to four heads of a
// token by the same angles: it computes them once, while its eight packs are under way. The powers
// of the base are computed once per block.

namespace tessera::gpu {
namespace {

constexpr int kHeads = 4;  // of a lane
constexpr double kHalfPi = 1.5707963267948966;

template <class T>
struct Turn {
  T* x;
  const int32_t* positions;
  double log2_base;
  float direction;
  int heads;
  int half;
  RowSplit split;  // of tokens; items are groups of dimensions of kHeads heads
};

struct Angle {
  float sine;
  float cosine;
};

/// As on the CPU: the angle in double, counted in quarter turns, so that a position of a million
/// keeps full precision after whole turns are dropped; then Taylor's polynomials on [-pi/4, pi/4].
__device__ __forceinline__ Angle angle_of(double turns) {
  constexpr double kRounder = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to whole numbers
  const double shifted = turns + kRounder;
  const auto quadrant = static_cast<uint32_t>(std::bit_cast<uint64_t>(shifted));
  const auto r = static_cast<float>((turns - (shifted - kRounder)) * kHalfPi);
  const float r2 = r * r;
  const float s = r + r * r2 * (-1.0f / 6 + r2 * (1.0f / 120 - r2 * (1.0f / 5040)));
  const float c = 1 - r2 * (0.5f - r2 * (1.0f / 24 - r2 * (1.0f / 720 - r2 * (1.0f / 40320))));
  const bool odd = (quadrant & 1) != 0;
  const uint32_t sine_sign = (quadrant & 2) << 30;
  const uint32_t cosine_sign = ((quadrant + 1) & 2) << 30;
  return {__uint_as_float(__float_as_uint(odd ? c : s) ^ sine_sign),
          __uint_as_float(__float_as_uint(odd ? s : c) ^ cosine_sign)};
}

template <class T, int N>
__global__ void __launch_bounds__(kMapThreads, 3) turn_heads(Turn<T> a) {
  SharedMemory shared;
  double* const quarter_turns = shared.take<double>(a.half);
  for (int i = static_cast<int>(threadIdx.x); i < a.half; i += kMapThreads) {
    quarter_turns[i] = exp2(-static_cast<double>(i) / a.half * a.log2_base) / kHalfPi;
  }
  __syncthreads();
  const RowPlace at = place_in(a.split);
  if (at.item < 0) return;
  const int groups = a.half / N;
  const int first_head = at.item / groups * kHeads;
  const int i = at.item % groups * N;
  const int heads = a.heads - first_head;  // of them the first kHeads
  T* const x = a.x + (at.row * a.heads + first_head) * 2 * a.half + i;
  Floats<N> low[kHeads];
  Floats<N> high[kHeads];
  for (int h = 0; h < kHeads; ++h) {
    if (h >= heads) continue;
    low[h] = load_floats<N>(x + h * 2 * a.half);
    high[h] = load_floats<N>(x + h * 2 * a.half + a.half);
  }
  const double position = a.positions[at.row];
  for (int k = 0; k < N; ++k) {
    const Angle angle = angle_of(position * quarter_turns[i + k]);
    const float sine = angle.sine * a.direction;
    for (int h = 0; h < kHeads; ++h) {
      const float before = low[h].at[k];
      low[h].at[k] = before * angle.cosine - high[h].at[k] * sine;
      high[h].at[k] = high[h].at[k] * angle.cosine + before * sine;
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    if (h >= heads) continue;
    store_floats(x + h * 2 * a.half, low[h]);
    store_floats(x + h * 2 * a.half + a.half, high[h]);
  }
}

}  // namespace

void rope(Stream& stream, const Rope& a) {
  const int64_t tokens = a.x.shape()[0];
  const int64_t heads = a.x.shape()[1];
  const int64_t half = a.x.shape()[2] / 2;
  if (a.x.elements() == 0) return;
  const int64_t quads = (heads + kHeads - 1) / kHeads;
  with_float_type(a.x.dtype(), [&]<class T>() {
    // Four of f32 and of bf16: eight of each of four heads would need 128 registers.
    constexpr int kN = 4;
    Turn<T> of{.x = a.x.as<T>().data(),
               .positions = a.positions.as<int32_t>().data(),
               .log2_base = std::log2(double{a.base}),
               .direction = a.inverse ? -1.0f : 1.0f,
               .heads = static_cast<int>(heads),
               .half = static_cast<int>(half),
               .split = RowSplit(tokens, quads * half)};
    const bool packed = aligned_to_packs(of.x) && half % kN == 0;
    if (packed) of.split = RowSplit(tokens, quads * (half / kN));
    launch(stream, packed ? turn_heads<T, kN> : turn_heads<T, 1>, of.split.grid(), kMapThreads,
           shared_bytes_of<double>(half), of);
  });
}

}  // namespace tessera::gpu
