#include <algorithm>
#include <vector>

#include "kernels/gate_backward.h"

namespace tessera::cpu {

namespace {

/// Adds to the row's dscores [k + 1]; returns its part of -sum du u, the gradient in log(width).
float row_backward(const float* z, const float* dlog_gate, int64_t count, int64_t kept,
                   float strength, float width, float* dz) {
  const float runner_up = z[kept];
  float to_runner_up = 0;
  float to_width = 0;
  for (int64_t s = 0; s < count; ++s) {
    const float u = (z[s] - runner_up) / width;
    const bool on_ramp = u > 0 && u < 1;
    const float gate = 1 - strength + strength * u;
    const float du = on_ramp ? strength * dlog_gate[s] / gate : 0;
    dz[s] += du / width;
    to_runner_up -= du / width;
    to_width -= on_ramp ? du * u : 0;
  }
  dz[kept] += to_runner_up;
  return to_width;
}

}  // namespace

void ramp_backward(ThreadPool& threads, const RampBackward& a) {
  // Every task sums over its own tokens; the sums are added in their order.
  constexpr int64_t kTokensPerTask = 1024;
  const int64_t kept = a.selection.kept();
  const int64_t groups = a.selection.counts.shape()[0];
  const int64_t tokens = a.selection.counts.shape()[1];
  const int64_t tasks = (tokens + kTokensPerTask - 1) / kTokensPerTask;
  const auto counts = a.selection.counts.as<int32_t>();
  const int32_t* blocks = a.selection.blocks.as<int32_t>().data();
  const float* scores = a.selection.scores.as<float>().data();
  const float* dlog_gate = a.dlog_gate.as<float>().data();
  const auto widths = a.ramp.widths.as<float>();
  float* dscores = a.dscores.as<float>().data();
  std::vector<double> sums(static_cast<size_t>(groups * tasks));
  threads.for_each(groups * tasks, [&](int64_t task) {
    const int64_t group = task / tasks;
    const int64_t begin = task % tasks * kTokensPerTask;
    double total = 0;
    for (int64_t t = begin; t < std::min(tokens, begin + kTokensPerTask); ++t) {
      const int64_t row = group * tokens + t;
      const int64_t slot = row * (kept + 1);
      if (blocks[slot + kept] < 0) continue;
      total += row_backward(scores + slot, dlog_gate + row * kept,
                            std::min<int64_t>(counts[static_cast<size_t>(row)], kept), kept,
                            a.ramp.strength, widths[static_cast<size_t>(group)], dscores + slot);
    }
    sums[static_cast<size_t>(task)] = total;
  });
  const auto dwidths = a.dwidths.as<float>();
  for (int64_t group = 0; group < groups; ++group) {
    double total = 0;
    for (int64_t i = 0; i < tasks; ++i) total += sums[static_cast<size_t>(group * tasks + i)];
    const auto c = static_cast<size_t>(group);
    dwidths[c] += static_cast<float>(total / widths[c]);
  }
}

}  // namespace tessera::cpu
