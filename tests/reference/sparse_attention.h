#pragma once

#include <map>
#include <optional>
#include <vector>

#include "tests/reference/attention.h"
#include "tests/reference/gate.h"
#include "tests/support/segments.h"
#include "tests/support/selection.h"

namespace tessera::reference {

/// z of every token and block, and what follows from them by dgsa 2.2.
struct Scores {
  Scores(const support::Segments& of, int64_t in_groups, uint64_t seed)
      : segments(of), groups(in_groups) {
    for (int64_t row = 0; row < groups * of.tokens(); ++row) {
      z.emplace_back();
      const int64_t own = of.own_block(row % of.tokens());
      for (int64_t b = 0; b < own; ++b) {
        const auto words = philox(seed, static_cast<uint64_t>(row), static_cast<uint64_t>(b));
        // As f32, because that is what a selection holds.
        z.back().push_back(static_cast<float>(normal(words[0], words[1])));
      }
    }
  }
  std::vector<double>& of(int64_t group, int64_t token) {
    return z[static_cast<size_t>(group * segments.tokens() + token)];
  }
  const std::vector<double>& of(int64_t group, int64_t token) const {
    return z[static_cast<size_t>(group * segments.tokens() + token)];
  }

  const support::Segments& segments;
  int64_t groups;
  std::vector<std::vector<double>> z;  ///< [groups * tokens][blocks before the own one]
};

/// What every token attends to, and the log gates of what it chose.
struct Attended {
  Attended(const Scores& scores, const BlockRule& of_rule, double strength,
           const std::vector<double>& widths)
      : segments(scores.segments), rule(of_rule) {
    for (int64_t c = 0; c < scores.groups; ++c) {
      for (int64_t i = 0; i < segments.tokens(); ++i) {
        const std::vector<double>& z = scores.of(c, i);
        const Choice choice = choose(z, segments.own_block(i), rule);
        std::vector<double> chosen;
        for (const int64_t b : choice.blocks) chosen.push_back(z[static_cast<size_t>(b)]);
        choices.push_back(choice);
        gates.push_back(std::vector<double>(chosen.size(), 0));
        if (choice.runner_up < 0) continue;
        gates.back() = log_gates(chosen, z[static_cast<size_t>(choice.runner_up)], strength,
                                 widths[static_cast<size_t>(c)]);
      }
    }
  }

  size_t row(int64_t group, int64_t token) const {
    return static_cast<size_t>(group * segments.tokens() + token);
  }
  /// Slot of token i's choice of the block, or -1.
  int64_t slot(int64_t group, int64_t i, int64_t block) const {
    const auto& blocks = choices[row(group, i)].blocks;
    const auto found = std::find(blocks.begin(), blocks.end(), block);
    return found == blocks.end() ? -1 : found - blocks.begin();
  }
  bool forced(int64_t i, int64_t block) const {
    return block < rule.sink_blocks || block > segments.own_block(i) - rule.window_blocks;
  }
  /// The log gate that attention() asks for, from `changed` gates [groups * tokens, kept].
  template <class T>
  auto log_gate(const std::vector<T>& changed) const {
    return [this, &changed](int64_t group, int64_t i, int64_t j) -> std::optional<T> {
      const int64_t block = segments.own_block(j);
      if (forced(i, block)) return T(0);
      const int64_t s = slot(group, i, block);
      if (s < 0) return std::nullopt;
      return changed[row(group, i) * static_cast<size_t>(rule.kept) + static_cast<size_t>(s)];
    };
  }
  /// The gates [groups * tokens, kept]; 0 in unused slots.
  template <class T>
  std::vector<T> flat_gates() const {
    std::vector<T> all;
    for (const auto& row_of_gates : gates) {
      std::vector<T> padded(row_of_gates.begin(), row_of_gates.end());
      padded.resize(static_cast<size_t>(rule.kept));
      all.insert(all.end(), padded.begin(), padded.end());
    }
    return all;
  }

  const support::Segments& segments;
  BlockRule rule;
  std::vector<Choice> choices;             ///< [groups * tokens]
  std::vector<std::vector<double>> gates;  ///< [groups * tokens][chosen]: log G
};

/// The choices as a kernel wants them.
inline support::Selection selection_of(const Scores& scores, const Attended& attended) {
  const int64_t tokens = scores.segments.tokens();
  support::Selection selection(scores.groups, tokens, attended.rule.kept);
  for (int64_t c = 0; c < scores.groups; ++c) {
    for (int64_t i = 0; i < tokens; ++i) {
      const Choice& choice = attended.choices[attended.row(c, i)];
      std::vector<int64_t> blocks = choice.blocks;
      selection.count(c, i) = static_cast<int32_t>(blocks.size());
      blocks.resize(static_cast<size_t>(attended.rule.kept), -1);
      blocks.push_back(choice.runner_up);
      for (size_t s = 0; s < blocks.size(); ++s) {
        const bool used = blocks[s] >= 0;
        selection.row_of_blocks(c, i)[s] = static_cast<int32_t>(blocks[s]);
        selection.row_of_scores(c, i)[s] =
            used ? static_cast<float>(scores.of(c, i)[static_cast<size_t>(blocks[s])]) : 0.0f;
      }
    }
  }
  return selection;
}

/// Block lists made from the choices, one entry at a time. Owns its memory.
class Lists {
 public:
  Lists(const Scores& scores, const Attended& attended) {
    const support::Segments& segments = scores.segments;
    using Masks = std::map<std::pair<int64_t, int64_t>, int32_t>;
    std::vector<Masks> by_tile(static_cast<size_t>(scores.groups));   // (tile, block) -> mask
    std::vector<Masks> by_block(static_cast<size_t>(scores.groups));  // (block over all, tile)
    size_t capacity = 1;
    for (int64_t c = 0; c < scores.groups; ++c) {
      for (int64_t i = 0; i < segments.tokens(); ++i) {
        for (const int64_t b : attended.choices[attended.row(c, i)].blocks) {
          const int32_t bit = 1 << segments.position(i) % SegmentGrid::kTile;
          const int64_t over_all = segments.first_block(segments.segment(i)) + b;
          by_tile[static_cast<size_t>(c)][{segments.tile(i), b}] |= bit;
          by_block[static_cast<size_t>(c)][{over_all, segments.tile(i)}] |= bit;
        }
      }
      capacity = std::max(capacity, by_tile[static_cast<size_t>(c)].size());
    }
    fill(by_tile, segments.grid().max_tiles(), capacity, 0);
    fill(by_block, segments.grid().max_blocks(), capacity, 3);
  }

  BlockLists view() const {
    return {.tile_offsets = tensors_[0],
            .tile_blocks = tensors_[1],
            .tile_masks = tensors_[2],
            .block_offsets = tensors_[3],
            .block_tiles = tensors_[4],
            .block_masks = tensors_[5]};
  }

 private:
  template <class Masks>
  void fill(const std::vector<Masks>& lists, int64_t rows, size_t capacity, size_t first) {
    const auto groups = static_cast<int64_t>(lists.size());
    const auto entries = static_cast<int64_t>(capacity);
    tensors_.push_back(support::filled(DType::kI32, {groups, rows + 1}, 0));
    tensors_.push_back(support::filled(DType::kI32, {groups, entries}, -7));
    tensors_.push_back(support::filled(DType::kU16, {groups, entries}, 7));
    for (size_t c = 0; c < lists.size(); ++c) {
      size_t entry = c * capacity;
      for (const auto& [key, mask] : lists[c]) {
        tensors_[first + 1].as<int32_t>()[entry] = static_cast<int32_t>(key.second);
        tensors_[first + 2].as<uint16_t>()[entry++] = static_cast<uint16_t>(mask);
        for (int64_t row = key.first + 1; row <= rows; ++row) {
          ++tensors_[first]
                .as<int32_t>()[c * static_cast<size_t>(rows + 1) + static_cast<size_t>(row)];
        }
      }
    }
  }

  std::vector<support::Tensor> tensors_;
};

}  // namespace tessera::reference
