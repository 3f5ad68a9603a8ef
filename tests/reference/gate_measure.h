#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <vector>

#include "kernels/gate_measure.h"
#include "tests/support/sparse_case.h"

namespace tessera::reference {

/// Figures by GateFigures::Place.
using Figures = std::map<int64_t, double>;

/// measure_gate_rows by its definition, one row and head at a time.
struct RowMeasures {
  explicit RowMeasures(const support::Sparse& of)
      : x(of), attended(of.attended()), input(of.input<double>()) {}

  int64_t kind(int64_t i, int64_t block) const {
    if (block > x.segments.own_block(i) - x.c.rule.window_blocks) return GateFigures::kWindow;
    return block < x.c.rule.sink_blocks ? GateFigures::kSink : GateFigures::kSelected;
  }

  void add_head(int64_t c, int64_t i, int64_t h, bool gated) {
    const auto gates = attended.flat_gates<double>();
    const auto gate = attended.log_gate(gates);
    const auto no_gate = [](int64_t, int64_t, int64_t) -> std::optional<double> { return 0; };
    const int64_t group_heads = x.c.heads / x.c.kv_heads;
    const int64_t head = c * group_heads + h;
    const auto s = attention_scores(x.segments, x.shape, input, head, i, no_gate);
    std::vector<double> all;
    std::vector<double> used;
    if (x.c.sink_logits) {
      all.push_back(input.sink_logits[static_cast<size_t>(head)]);
      used = all;
    }
    const int64_t start = x.segments.start(x.segments.segment(i));
    std::vector<std::optional<double>> logs;
    for (size_t j = 0; j < s.size(); ++j) {
      all.push_back(*s[j]);
      logs.push_back(gated ? gate(c, i, start + static_cast<int64_t>(j)) : 0.0);
      if (logs.back()) used.push_back(*s[j] + *logs.back());
    }
    const double full = log_sum_exp(all);
    const double lse = log_sum_exp(used);
    const double share = 1.0 / static_cast<double>(group_heads);
    if (x.c.sink_logits) figures[GateFigures::kKept] += share * std::exp(all[0] - full);
    for (size_t j = 0; j < s.size(); ++j) {
      if (!logs[j]) continue;
      const int64_t token = start + static_cast<int64_t>(j);
      const double p = share * std::exp(*s[j] + *logs[j] - lse);
      figures[GateFigures::kKept] += share * std::exp(*s[j] - full);
      figures[kind(i, x.segments.own_block(token))] += p;
      map[{i * kMapBins / x.segments.tokens(), token * kMapBins / x.segments.tokens()}] += p;
    }
  }

  void add_choice(int64_t c, int64_t i) {
    const Choice& choice = attended.choices[attended.row(c, i)];
    const auto& scores = x.scores.of(c, i);
    std::vector<double> z;
    for (const int64_t b : choice.blocks) z.push_back(scores[static_cast<size_t>(b)]);
    if (z.size() >= 2) {
      const double lse = log_sum_exp(z);
      const std::vector<double> target = target_of(c, i, choice.blocks);
      figures[GateFigures::kChoosing] += 1;
      for (size_t s = 0; s < z.size(); ++s) {
        figures[GateFigures::kEntropy] -= std::exp(z[s] - lse) * (z[s] - lse);
        figures[GateFigures::kKl] += target[s] * (std::log(target[s]) - z[s] + lse);
      }
    }
    if (choice.runner_up < 0) return;
    const double tau = scores[static_cast<size_t>(choice.runner_up)];
    figures[GateFigures::kDropping] += 1;
    figures[GateFigures::kMargin] += *std::ranges::min_element(z) - tau;
    for (const double score : z) {
      const double width = support::to_doubles(x.widths)[static_cast<size_t>(c)];
      if ((score - tau) / width < 1) {
        figures[GateFigures::kRamped] += 1 / static_cast<double>(z.size());
      }
    }
  }
  std::vector<double> target_of(int64_t c, int64_t i, const std::vector<int64_t>& blocks) const {
    const auto no_gate = [](int64_t, int64_t, int64_t) -> std::optional<double> { return 0; };
    const int64_t group_heads = x.c.heads / x.c.kv_heads;
    std::vector<double> target(blocks.size());
    for (int64_t h = 0; h < group_heads; ++h) {
      const auto s = attention_scores(x.segments, x.shape, input, c * group_heads + h, i, no_gate);
      std::vector<double> lse;
      for (const int64_t b : blocks) {
        std::vector<double> of_block;
        for (int64_t j = b * x.c.block; j < (b + 1) * x.c.block; ++j) {
          of_block.push_back(*s[static_cast<size_t>(j)]);
        }
        lse.push_back(log_sum_exp(of_block));
      }
      const double all = log_sum_exp(lse);
      for (size_t b = 0; b < lse.size(); ++b) {
        target[b] += std::exp(lse[b] - all) / static_cast<double>(group_heads);
      }
    }
    return target;
  }

  void add(int64_t c, const std::vector<int64_t>& rows, bool gated) {
    for (const int64_t i : rows) {
      figures[GateFigures::kRows] += 1;
      map[{i * kMapBins / x.segments.tokens(), kMapBins}] += 1;
      for (int64_t h = 0; h < x.c.heads / x.c.kv_heads; ++h) add_head(c, i, h, gated);
      if (gated) add_choice(c, i);
    }
  }

  const support::Sparse& x;
  Attended attended;
  AttentionInput<double> input;
  Figures figures;
  std::map<std::pair<int64_t, int64_t>, double> map;
};

inline int64_t distance_bin(int64_t distance) {
  int64_t bin = 0;
  while (distance >= int64_t{2} << bin) ++bin;
  return bin;
}

/// measure_gate_lists, token by token and block by block.
struct ListMeasures {
  ListMeasures(const support::Sparse& x, int64_t c) {
    const Attended chosen = x.attended();
    std::map<int64_t, std::set<int64_t>> unions;
    std::map<int64_t, int64_t> tile_tokens;
    for (int64_t i = 0; i < x.segments.tokens(); ++i) {
      const Choice& choice = chosen.choices[chosen.row(c, i)];
      const int64_t own = x.segments.own_block(i);
      unions[x.segments.tile(i)].insert(choice.blocks.begin(), choice.blocks.end());
      ++tile_tokens[x.segments.tile(i)];
      figures[GateFigures::kChosen] += static_cast<double>(choice.blocks.size());
      if (choice.runner_up < 0) continue;
      for (int64_t b = 0; b <= own; ++b) {
        if (chosen.forced(i, b)) continue;
        const auto over_all = x.segments.first_block(x.segments.segment(i)) + b;
        const bool selected = chosen.slot(c, i, b) >= 0;
        counts[over_all].first += 1;
        counts[over_all].second += selected ? 1 : 0;
        figures[GateFigures::kCandidatesAt + distance_bin(own - b)] += 1;
        if (selected) figures[GateFigures::kChosenAt + distance_bin(own - b)] += 1;
      }
    }
    for (const auto& [tile, blocks] : unions) {
      const auto size = static_cast<double>(blocks.size());
      figures[GateFigures::kTiles] += 1;
      figures[GateFigures::kUnion] += size;
      figures[GateFigures::kExecuted] += size * static_cast<double>(tile_tokens[tile]);
    }
  }
  Figures figures;
  std::map<int64_t, std::pair<double, double>> counts;
};

}  // namespace tessera::reference
