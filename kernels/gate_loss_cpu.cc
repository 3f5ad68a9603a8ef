#include <algorithm>
#include <array>
#include <vector>

#include "kernels/core/fast_math.h"
#include "kernels/gate_loss.h"
#include "kernels/gate_score.h"

namespace tessera::cpu {

namespace {

/// Sums of (kl, entropy, z) without their coefficients.
using Sums = std::array<double, 3>;

struct Coefficients {
  float kl, entropy, z;
};
Coefficients coefficients_of(const GateLoss& a) {
  if (a.coefficients.empty()) return {a.kl_coefficient, a.entropy_coefficient, a.z_coefficient};
  const auto given = a.coefficients.as<float>();
  return {given[0], given[1], given[2]};
}

/// p = exp(x - lse(x)); returns lse(x).
float softmax(const float* x, float* p, int64_t count) {
  float highest = x[0];
  for (int64_t b = 1; b < count; ++b) highest = x[b] > highest ? x[b] : highest;
  for (int64_t b = 0; b < count; ++b) p[b] = fast_exp(x[b] - highest);
  float total = 0;
  for (int64_t b = 0; b < count; ++b) total += p[b];
  const float inverse = 1 / total;
  for (int64_t b = 0; b < count; ++b) p[b] *= inverse;
  return highest + gate_log(total);
}

/// target[b] = mean over heads of softmax_b(block_lse[h, b]); `of_head` is scratch.
void mean_attention(const float* block_lse, int64_t heads, int64_t stride, int64_t count,
                    float* of_head, float* target) {
  std::fill_n(target, count, 0.0f);
  for (int64_t h = 0; h < heads; ++h) {
    softmax(block_lse + h * stride, of_head, count);
    for (int64_t b = 0; b < count; ++b) target[b] += of_head[b];
  }
  for (int64_t b = 0; b < count; ++b) target[b] /= static_cast<float>(heads);
}

/// One row: z [count] and the target; writes dz [count] and adds to the sums.
void row_loss(const Coefficients& c, const float* z, const float* target, int64_t count, float* p,
              float* dz, Sums& sums) {
  const float lse = softmax(z, p, count);
  float entropy = 0;
  float kl = 0;
  for (int64_t b = 0; b < count; ++b) {
    const float log_p = z[b] - lse;
    entropy -= p[b] * log_p;
    // 0 log 0 = 0; a denormal number counts as 0.
    const float log_ratio = target[b] < 1e-37f ? 0 : gate_log(target[b]) - log_p;
    kl += target[b] * log_ratio;
  }
  for (int64_t b = 0; b < count; ++b) {
    dz[b] = c.kl * (p[b] - target[b]) - c.entropy * p[b] * (z[b] - lse + entropy) +
            2 * c.z * lse * p[b];
  }
  sums[0] += kl;
  sums[1] += entropy;
  sums[2] += static_cast<double>(lse) * lse;
}

}  // namespace

void gate_loss(ThreadPool& threads, const GateLoss& a) {
  constexpr int64_t kRowsPerTask = 256;
  const int64_t kept = a.selection.kept();
  const int64_t heads = a.block_lse.shape()[2];
  const auto counts = a.selection.counts.as<int32_t>();
  const float* scores = a.selection.scores.as<float>().data();
  const float* block_lse = a.block_lse.as<float>().data();
  float* dscores = a.dscores.as<float>().data();
  const Coefficients coefficients = coefficients_of(a);
  const auto rows = static_cast<int64_t>(counts.size());
  std::vector<Sums> sums(static_cast<size_t>((rows + kRowsPerTask - 1) / kRowsPerTask));
  threads.for_ranges(rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(static_cast<size_t>(3 * kept));
    float* p = scratch.data();
    float* target = p + kept;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t count = std::min<int64_t>(counts[static_cast<size_t>(i)], kept);
      float* dz = dscores + i * (kept + 1);
      std::fill_n(dz, kept + 1, 0.0f);
      if (count < 2) continue;
      mean_attention(block_lse + i * heads * kept, heads, kept, count, target + kept, target);
      row_loss(coefficients, scores + i * (kept + 1), target, count, p, dz,
               sums[static_cast<size_t>(begin / kRowsPerTask)]);
    }
  });
  Sums total{};
  for (const Sums& part : sums) {
    for (size_t i = 0; i < total.size(); ++i) total[i] += part[i];
  }
  const auto losses = a.losses.as<float>();
  losses[0] += static_cast<float>(total[0] * coefficients.kl);
  losses[1] += static_cast<float>(total[1] * coefficients.entropy);
  losses[2] += static_cast<float>(total[2] * coefficients.z);
}

}  // namespace tessera::cpu
