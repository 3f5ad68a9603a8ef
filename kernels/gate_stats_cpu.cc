#include <algorithm>
#include <vector>

#include "kernels/gate_score.h"
#include "kernels/gate_stats.h"

namespace tessera::cpu {

namespace {

/// A token whose choice is compared with that from all candidates.
struct Sample {
  int64_t group;
  int64_t token;  // row
  int64_t segment;
  int64_t candidates;
};

std::vector<Sample> draw_samples(const GateStats& a) {
  std::vector<Sample> samples;
  const Stretches pieces = pieces_of(a.grid);
  for (int64_t group = 0; group < a.selection.blocks.shape()[0]; ++group) {
    for (int64_t p = 0; p < pieces.size(); ++p) {
      constexpr int64_t kEvery = GateStats::kSampled;
      for (int64_t at = pieces.first(p) / kEvery * kEvery + kEvery - 1; at < pieces.end(p);
           at += kEvery) {
        const int64_t candidates = a.rule.candidates(at / a.grid.block);
        if (a.tree.first_level(candidates, a.rule.kept) == 0) continue;
        samples.push_back({group, pieces.origin(p) + at, pieces.segment(p), candidates});
      }
    }
  }
  return samples;
}

/// How many of the token's chosen blocks are among the best of all candidates.
int64_t count_best(const GateStats& a, const Sample& at) {
  const int64_t gate_dim = a.qt.shape()[2];
  const auto slots = static_cast<size_t>(a.rule.kept + 1);
  const int64_t row = at.group * a.grid.tokens() + at.token;
  const int64_t first_key = at.group * a.kt.shape()[1] + a.rule.sink_blocks +
                            a.grid.block_starts.as<int32_t>()[static_cast<size_t>(at.segment)];
  std::vector<float> z(static_cast<size_t>(at.candidates));
  for (size_t i = 0; i < z.size(); ++i) {
    z[i] = gate_product(a.qt.as<float>().data() + row * gate_dim,
                        a.kt.as<float>().data() + (first_key + static_cast<int64_t>(i)) * gate_dim,
                        gate_dim);
  }
  std::vector<int32_t> best(slots);
  std::vector<float> scores(slots);
  choose_blocks(z, a.rule.sink_blocks, best, scores);
  const auto chosen =
      a.selection.blocks.as<int32_t>().subspan(static_cast<size_t>(row) * slots, slots - 1);
  best.pop_back();
  return std::ranges::count_if(chosen,
                               [&](int32_t b) { return std::ranges::binary_search(best, b); });
}

void add_recall(ThreadPool& threads, const GateStats& a) {
  const std::vector<Sample> samples = draw_samples(a);
  std::vector<int64_t> found(samples.size());
  threads.for_each(std::ssize(samples), [&](int64_t i) {
    const auto sample = static_cast<size_t>(i);
    found[sample] = count_best(a, samples[sample]);
  });
  int64_t sum = 0;
  for (const int64_t count : found) sum += count;
  a.stats.as<float>()[4] += static_cast<float>(sum);
  a.stats.as<float>()[5] += static_cast<float>(std::ssize(samples) * a.rule.kept);
}

}  // namespace

void gate_stats(ThreadPool& threads, const GateStats& a) {
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
  if (a.tree.enabled()) add_recall(threads, a);
}

}  // namespace tessera::cpu
