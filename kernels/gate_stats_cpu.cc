#include <algorithm>

#include "kernels/gate_stats.h"

namespace tessera::cpu {

void gate_stats(ThreadPool&, const GateStats& a) {
  const Shape slots = a.selection.scores.shape();
  const int64_t tokens = slots[1];
  const int64_t kept = slots[2] - 1;
  const auto positions = a.grid.positions.as<int32_t>();
  const auto blocks = a.selection.blocks.as<int32_t>();
  const auto scores = a.selection.scores.as<float>();
  const auto counts = a.selection.counts.as<int32_t>();
  const auto widths = a.ramp.widths.as<float>();
  double idle_share = 0;
  double chosen = 0;
  double gates = 0;
  for (int64_t row = 0; row < slots[0] * tokens; ++row) {
    const float width = widths[static_cast<size_t>(row / tokens)];
    const int64_t own = positions[static_cast<size_t>(row % tokens)] / a.grid.block;
    const int64_t count = counts[static_cast<size_t>(row)];
    // Sink and window may overlap near the start of a segment.
    const int64_t window_begin = std::max<int64_t>(0, own - a.rule.window_blocks + 1);
    const int64_t forced = own + 1 - window_begin + std::min(a.rule.sink_blocks, window_begin);
    const auto visible = static_cast<double>(own + 1);
    idle_share += (visible - static_cast<double>(forced + count)) / visible;
    chosen += static_cast<double>(count);
    const size_t first = static_cast<size_t>(row * (kept + 1));
    const bool ramped = blocks[first + static_cast<size_t>(kept)] >= 0;
    for (int64_t slot = 0; slot < count; ++slot) {
      const float u =
          (scores[first + static_cast<size_t>(slot)] - scores[first + static_cast<size_t>(kept)]) /
          width;
      gates += ramped ? 1 - a.ramp.strength * (1 - std::clamp(u, 0.0f, 1.0f)) : 1;
    }
  }
  const auto stats = a.stats.as<float>();
  stats[0] += static_cast<float>(slots[0] * tokens);
  stats[1] += static_cast<float>(idle_share);
  stats[2] += static_cast<float>(chosen);
  stats[3] += static_cast<float>(gates);
}

}  // namespace tessera::cpu
