#pragma once

#include <limits>

#include "kernels/attention_tile.cuh"
#include "kernels/key_panel.cuh"

/// The online softmax of Milakov & Gimelshein (arXiv:1805.02867) over panels of kPanel scores, of
/// the two rows of a lane whose scores lie as wgmma leaves them: s[4 n + i] as c[n][i] in
/// attention_tile.cuh. Exponentials are powers of two.
namespace tessera::gpu {

inline constexpr float kNoScore = -std::numeric_limits<float>::infinity();

template <int kPanel>
struct OnlineSoftmax {
  using Scores = float[kPanel / 2];

  float largest[2];  ///< in units of log2(e)
  float sum[2];      ///< of this lane's columns

  __device__ __forceinline__ void start() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      largest[half] = kNoScore;
      sum[half] = 0;
    }
  }
  /// The sink is a key with score a_h and no value.
  __device__ __forceinline__ void add_sinks(const LaneRows& rows, const float* sink_logits) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      largest[half] = sink_logits[rows.head[half]] * kLog2E;
      sum[half] = threadIdx.x % 4 == 0 && largest[half] != kNoScore ? 1.0f : 0.0f;
    }
  }

  __device__ __forceinline__ static void hide(Scores& s, const PanelView& view) {
#pragma unroll
    for (int i = 0; i < kPanel / 2; ++i) {
      const SeenKeys& seen = view.seen[i / 2 % 2];
      const int key = column_of_lane(i / 4, i);
      // As SeenKeys::sees, without branches.
      const bool sees = static_cast<int>(key <= seen.high) &
                        (static_cast<int>(key >= seen.low) | static_cast<int>(key < seen.sinks));
      s[i] = sees ? s[i] : kNoScore;
    }
  }

  /// Turns the scores of one of the lane's rows into weights; `bias` is log2 of the gate. Returns
  /// the factor of what was before. `sums` is told the row's sum over the panel, if it wants to
  /// know (forward_walks.cuh).
  template <class Sums>
  __device__ __forceinline__ float weigh(int half, Scores& s, float bias, float scale, Sums& sums) {
    float top = kNoScore;
#pragma unroll
    for (int n = 0; n < kPanel / 8; ++n) {
      top = fmaxf(top, fmaxf(s[4 * n + 2 * half], s[4 * n + 2 * half + 1]));
    }
    top = fmaf(row_max(top), scale, bias);
    const float now = fmaxf(largest[half], top);
    const float shift = now == kNoScore ? 0 : now;  // no key was seen yet, by a row without a sink
    const float keep = fast_exp2(largest[half] - shift);
    largest[half] = now;
    bool apart = false;
    float apart_sum = 0;
    if constexpr (Sums::kWanted) {
      // Far below what was seen before all weights may be 0, but their sum is asked for.
      apart = top - shift < -100;
      if (__any_sync(kWholeWarp, sums.wants(half) && apart)) {
        apart_sum = row_sum(add_exponentials(half, s, scale, bias - top));
      }
    }
    const float offset = bias - shift;
    float total = 0;
#pragma unroll
    for (int n = 0; n < kPanel / 8; ++n) {
#pragma unroll
      for (int i = 4 * n + 2 * half; i < 4 * n + 2 * half + 2; ++i) {
        s[i] = fast_exp2(fmaf(s[i], scale, offset));
        total += s[i];
      }
    }
    if constexpr (Sums::kWanted) {
      if (__any_sync(kWholeWarp, sums.wants(half))) {
        const float of_row = row_sum(total);
        const float lse = apart ? log2f(apart_sum) + top : log2f(of_row) + shift;
        sums.keep(half, lse - bias);
      }
    }
    sum[half] = sum[half] * keep + total;
    return keep;
  }

  /// What follows is not done before the weights are there: ptxas moves a wait for products up to
  /// the last branch, and then nothing is under way beside the weighing. Sums are never negative.
  __device__ __forceinline__ void stay_before() const {
    if (sum[0] + sum[1] < 0) __trap();
  }

 private:
  __device__ __forceinline__ static float add_exponentials(int half, const Scores& s, float scale,
                                                           float offset) {
    float total = 0;
#pragma unroll
    for (int n = 0; n < kPanel / 8; ++n) {
      total += fast_exp2(fmaf(s[4 * n + 2 * half], scale, offset));
      total += fast_exp2(fmaf(s[4 * n + 2 * half + 1], scale, offset));
    }
    return total;
  }
};

}  // namespace tessera::gpu
