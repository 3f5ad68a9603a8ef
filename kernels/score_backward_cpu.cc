// Two passes over the choices. dqt: every token gathers the keys it chose. dkt: every task owns a
// range of blocks and goes through the tokens in order, so no sum is shared and its order is
// fixed; a token's slots ascend, so the few that lie in the range are found by bisection.

#include <algorithm>
#include <vector>

#include "kernels/core/simd.h"
#include "kernels/gate_backward.h"
#include "kernels/gate_score.h"

namespace tessera::cpu {

namespace {

/// y += factor * x.
void add_scaled(float* y, const float* x, float factor, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(y + i, load(y + i) + factor * load(x + i));
  for (; i < count; ++i) y[i] += factor * x[i];
}

/// In another order than gate_product: fast, and here the last bit does not matter.
float dot(const float* a, const float* b, int64_t count) {
  F32x16 products{};
  for (int64_t i = 0; i < count; i += kLanes) {
    products += load_first(a + i, count - i) * load_first(b + i, count - i);
  }
  return sum(products);
}

/// The choices of one token.
struct Choices {
  const int32_t* blocks;  // [k + 1]
  const float* scores;    // [k + 1]
  const float* dscores;   // [k + 1]
  const float* qt;        // [gate_dim]
  int64_t count;
  float scale;  // gate_scale
};

Choices choices_of(const ScoreBackward& a, int64_t row, float scale) {
  const int64_t slots = a.selection.kept() + 1;
  return {.blocks = a.selection.blocks.as<int32_t>().data() + row * slots,
          .scores = a.selection.scores.as<float>().data() + row * slots,
          .dscores = a.dscores.as<float>().data() + row * slots,
          .qt = a.qt.as<float>().data() + row * a.qt.shape()[2],
          .count = std::min<int64_t>(a.selection.counts.as<int32_t>()[static_cast<size_t>(row)],
                                     slots - 1),
          .scale = scale};
}

/// visit(key row of the segment, gradient of the product of that row with the token's query), for
/// every gate key of the block in slot s. `kt`: the segment's first key row.
template <class Visit>
void for_each_key(const ScoreBackward& a, const Choices& choices, int64_t s, const float* kt,
                  const Visit& visit) {
  const int64_t gate_dim = a.qt.shape()[2];
  const float dscore = choices.dscores[s] * choices.scale;
  if (dscore == 0) return;
  const int64_t first = choices.blocks[s] * a.gate_keys;
  if (a.gate_keys == 1) return visit(first, dscore);
  for (int64_t key = first; key < first + a.gate_keys; ++key) {
    const float product = dot(choices.qt, kt + key * gate_dim, gate_dim) * choices.scale;
    visit(key, dscore * gate_exp(product - choices.scores[s]));
  }
}

void backward_queries(ThreadPool& threads, const ScoreBackward& a) {
  const int64_t gate_dim = a.qt.shape()[2];
  const float scale = gate_scale(gate_dim);
  const int64_t kept = a.selection.kept();
  const int64_t tiles = tile_count(a.grid);
  const auto block_starts = a.grid.block_starts.as<int32_t>();
  threads.for_each(a.qt.shape()[0] * tiles, [&](int64_t task) {
    const int64_t group = task / tiles;
    const GridRange tile = find_tile(a.grid, task % tiles);
    const int64_t first_key =
        group * a.kt.shape()[1] + block_starts[static_cast<size_t>(tile.segment)] * a.gate_keys;
    const float* kt = a.kt.as<float>().data() + first_key * gate_dim;
    for (int64_t t = tile.first; t < tile.first + tile.tokens; ++t) {
      const int64_t row = group * a.grid.tokens() + t;
      float* dqt = a.dqt.as<float>().data() + row * gate_dim;
      std::fill_n(dqt, gate_dim, 0.0f);
      const Choices choices = choices_of(a, row, scale);
      const auto add = [&](int64_t key, float dproduct) {
        add_scaled(dqt, kt + key * gate_dim, dproduct, gate_dim);
      };
      for (int64_t s = 0; s < choices.count; ++s) for_each_key(a, choices, s, kt, add);
      if (choices.blocks[kept] >= 0) for_each_key(a, choices, kept, kt, add);
    }
  });
}

/// Adds the choices of one token in [begin, end) of its segment's blocks.
template <class Visit>
void visit_choices(const ScoreBackward& a, const Choices& choices, int64_t begin, int64_t end,
                   const float* kt, const Visit& visit) {
  const int32_t* last = choices.blocks + choices.count;
  const int64_t kept = a.selection.kept();
  const int32_t* slot = std::lower_bound(choices.blocks, last, begin);
  for (; slot != last && *slot < end; ++slot) {
    for_each_key(a, choices, slot - choices.blocks, kt, visit);
  }
  const int32_t runner_up = choices.blocks[kept];
  if (runner_up >= begin && runner_up < end) for_each_key(a, choices, kept, kt, visit);
}

void backward_keys(ThreadPool& threads, const ScoreBackward& a) {
  constexpr int64_t kBlocksPerTask = 32;
  const int64_t gate_dim = a.qt.shape()[2];
  const float scale = gate_scale(gate_dim);
  const int64_t max_blocks = a.grid.max_blocks();
  const int64_t tasks = (max_blocks + kBlocksPerTask - 1) / kBlocksPerTask;
  const Stretches pieces = pieces_of(a.grid);
  const auto block_starts = a.grid.block_starts.as<int32_t>();
  threads.for_each(a.qt.shape()[0] * tasks, [&](int64_t task) {
    const int64_t group = task / tasks;
    const int64_t begin = task % tasks * kBlocksPerTask;
    const int64_t end = std::min(max_blocks, begin + kBlocksPerTask);
    const int64_t first_key = group * a.kt.shape()[1];
    float* dkt = a.dkt.as<float>().data() + (first_key + begin * a.gate_keys) * gate_dim;
    std::fill_n(dkt, (end - begin) * a.gate_keys * gate_dim, 0.0f);
    // The segments with blocks in the range.
    const auto after = std::upper_bound(block_starts.begin(), block_starts.end(), begin);
    for (auto s = static_cast<size_t>(after - block_starts.begin()) - 1;
         s + 1 < block_starts.size() && block_starts[s] < end; ++s) {
      const auto segment = static_cast<int64_t>(s);
      const int64_t segment_key = first_key + block_starts[s] * a.gate_keys;
      const float* kt = a.kt.as<float>().data() + segment_key * gate_dim;
      float* dkt_of_segment = a.dkt.as<float>().data() + segment_key * gate_dim;
      const int64_t first_block = std::max<int64_t>(0, begin - block_starts[s]);
      // Tokens choose only blocks before their own.
      const int64_t first_position = (first_block + 1) * a.grid.block;
      for (int64_t p = pieces.begin_of(segment); p < pieces.begin_of(segment + 1); ++p) {
        const int64_t skipped = std::max<int64_t>(0, first_position - pieces.first(p));
        for (int64_t t = pieces.row(p) + skipped; t < pieces.row(p + 1); ++t) {
          const Choices choices = choices_of(a, group * a.grid.tokens() + t, scale);
          visit_choices(
              a, choices, first_block, end - block_starts[s], kt, [&](int64_t key, float dproduct) {
                add_scaled(dkt_of_segment + key * gate_dim, choices.qt, dproduct, gate_dim);
              });
        }
      }
    }
  });
}

}  // namespace

void score_backward(ThreadPool& threads, const ScoreBackward& a) {
  check_block_count(a.grid, "score_backward");
  backward_queries(threads, a);
  backward_keys(threads, a);
}

}  // namespace tessera::cpu
