// Sixteen tokens of a tile are the lanes of a vector. They share their own block and so their
// candidates: scores are a small matrix product with one fused multiply-add per lane, key and
// dimension; the k + 1 best of a token are found by bisection between its smallest and largest
// score, counting; all lanes at once. Work: tokens * blocks / 2 * gate_dim multiply-adds, and
// about a fifth of that for the bisection.

#include <algorithm>
#include <vector>

#include "kernels/block_selection.h"
#include "kernels/core/simd.h"
#include "kernels/gate_score_lanes.h"
#include "kernels/tile_choice.h"

namespace tessera::cpu {

namespace {

constexpr int64_t kTile = SegmentGrid::kTile;
static_assert(kTile == kLanes);

/// Buffers of one thread; they only grow.
struct Scratch {
  std::vector<F32x16> queries;   // [gate_dim]: the tile's gate queries, transposed
  std::vector<F32x16> products;  // [blocks at once * gate_keys]
  std::vector<I32x16> keys;      // [candidates]: score_key of every score
};

Scratch& scratch_of_this_thread() {
  thread_local Scratch scratch;
  return scratch;
}

/// One tile's share of the problem.
struct TileTask {
  const float* qt;  // first token of the tile
  const float* kt;  // first candidate
  int64_t tokens;
  int64_t candidates;
  int64_t gate_dim;
  int64_t gate_keys;
};

template <int kRows>
void multiply(const F32x16* queries, const float* kt, int64_t gate_dim, float scale, F32x16* out) {
  F32x16 sums[kRows] = {};
  for (int64_t d = 0; d < gate_dim; ++d) {
    for (int row = 0; row < kRows; ++row) {
      sums[row] = fused(broadcast(kt[row * gate_dim + d]), queries[d], sums[row]);
    }
  }
  for (int row = 0; row < kRows; ++row) out[row] = fused(broadcast(scale), sums[row], F32x16{});
}

/// out[r] = gate_product of all tokens with key row r.
void multiply_rows(const F32x16* queries, const float* kt, int64_t rows, int64_t gate_dim,
                   F32x16* out) {
  const float scale = gate_scale(gate_dim);
  int64_t row = 0;
  for (; row + 8 <= rows; row += 8) {
    multiply<8>(queries, kt + row * gate_dim, gate_dim, scale, out + row);
  }
  for (; row < rows; ++row) {
    multiply<1>(queries, kt + row * gate_dim, gate_dim, scale, out + row);
  }
}

/// Fills scratch.keys.
void score_tile(const TileTask& a, Scratch& scratch) {
  constexpr int64_t kBlocksAtOnce = 16;
  scratch.queries.assign(static_cast<size_t>(a.gate_dim), F32x16{});
  scratch.products.resize(static_cast<size_t>(kBlocksAtOnce * a.gate_keys));
  scratch.keys.resize(static_cast<size_t>(a.candidates));
  for (int64_t t = 0; t < a.tokens; ++t) {
    for (int64_t d = 0; d < a.gate_dim; ++d) {
      scratch.queries[static_cast<size_t>(d)][t] = a.qt[t * a.gate_dim + d];
    }
  }
  for (int64_t first = 0; first < a.candidates; first += kBlocksAtOnce) {
    const int64_t blocks = std::min(kBlocksAtOnce, a.candidates - first);
    F32x16* products = scratch.products.data();
    multiply_rows(scratch.queries.data(), a.kt + first * a.gate_keys * a.gate_dim,
                  blocks * a.gate_keys, a.gate_dim, products);
    for (int64_t b = 0; b < blocks; ++b) {
      const F32x16* of_block = products + b * a.gate_keys;
      scratch.keys[static_cast<size_t>(first + b)] =
          keys_of(a.gate_keys == 1 ? *of_block : gate_log_sum(of_block, a.gate_keys));
    }
  }
}

/// Chooses for the tokens of a tile; `first_block` is the first candidate.
void choose(const std::vector<I32x16>& keys, int64_t first_block, int64_t kept, int64_t tokens,
            SelectionRow* rows) {
  const auto candidates = static_cast<int64_t>(keys.size());
  if (candidates <= kept) {
    for (int64_t t = 0; t < tokens; ++t) {
      for (size_t i = 0; i < keys.size(); ++i)
        rows[t].add(first_block + static_cast<int64_t>(i), keys[i][t]);
      rows[t].clear_from(candidates, kept + 1);
    }
    return;
  }
  for_each_best(keys, static_cast<int32_t>(kept + 1), tokens,
                [&](int t, int64_t slot, int32_t key) { rows[t].add(first_block + slot, key); });
  for (int64_t t = 0; t < tokens; ++t) rows[t].move_runner_up_to_the_end();
}

/// Tokens in consecutive rows with the same own block.
struct Stretch {
  int64_t segment;
  int64_t first;  // row
  int64_t tokens;
  int64_t candidates;
};

/// Fills the counts, and the empty rows of tokens without candidates.
void open_rows(const ScoreSelect& a, int64_t group, const Stretch& at, SelectionRow* rows) {
  const int64_t slots = a.rule.kept + 1;
  const int64_t first_token = group * a.grid.tokens() + at.first;
  const auto counts = a.selection.counts.as<int32_t>();
  for (int64_t t = 0; t < at.tokens; ++t) {
    rows[t].blocks = a.selection.blocks.as<int32_t>().data() + (first_token + t) * slots;
    rows[t].scores = a.selection.scores.as<float>().data() + (first_token + t) * slots;
    counts[static_cast<size_t>(first_token + t)] =
        static_cast<int32_t>(std::min(at.candidates, a.rule.kept));
    if (at.candidates == 0) rows[t].clear_from(0, slots);
  }
}

/// The choice of up to kTile tokens from all candidates.
void select_flat(const ScoreSelect& a, int64_t group, const Stretch& at, SelectionRow* rows) {
  const int64_t gate_dim = a.qt.shape()[2];
  const auto block_starts = a.grid.block_starts.as<int32_t>();
  const int64_t first_key =
      group * a.kt.shape()[1] +
      (block_starts[static_cast<size_t>(at.segment)] + a.rule.sink_blocks) * a.gate_keys;
  Scratch& scratch = scratch_of_this_thread();
  score_tile({.qt = a.qt.as<float>().data() + (group * a.grid.tokens() + at.first) * gate_dim,
              .kt = a.kt.as<float>().data() + first_key * gate_dim,
              .tokens = at.tokens,
              .candidates = at.candidates,
              .gate_dim = gate_dim,
              .gate_keys = a.gate_keys},
             scratch);
  choose(scratch.keys, a.rule.sink_blocks, a.rule.kept, at.tokens, rows);
}

/// Leaves of a segment: complete or not, the last block never is a candidate.
TreeLayout layout_of(const ScoreSelect& a, int64_t segment) {
  const auto starts = a.grid.block_starts.as<int32_t>().subspan(static_cast<size_t>(segment), 2);
  return {std::max<int64_t>(0, starts[1] - starts[0] - a.rule.sink_blocks), a.tree.radix};
}

float* tree_of(const ScoreSelect& a, int64_t group, int64_t segment) {
  const int64_t first_block = a.grid.block_starts.as<int32_t>()[static_cast<size_t>(segment)];
  return a.nodes.as<float>().data() +
         (group * a.nodes.shape()[1] + tree_rows(first_block)) * a.nodes.shape()[2];
}

void build_tree(const ScoreSelect& a, int64_t group, int64_t segment) {
  const int64_t gate_dim = a.qt.shape()[2];
  const TreeLayout layout = layout_of(a, segment);
  const int64_t first_key = group * a.kt.shape()[1] + a.rule.sink_blocks +
                            a.grid.block_starts.as<int32_t>()[static_cast<size_t>(segment)];
  for (int64_t leaf = 0; leaf < layout.nodes(0); ++leaf) {
    insert_leaf(layout, gate_dim, leaf, a.kt.as<float>().data() + (first_key + leaf) * gate_dim,
                tree_of(a, group, segment));
  }
}

void select_in_tree(const ScoreSelect& a, int64_t group, const Stretch& at, SelectionRow* rows) {
  const int64_t gate_dim = a.qt.shape()[2];
  search_tree({.nodes = tree_of(a, group, at.segment),
               .layout = layout_of(a, at.segment),
               .tree = a.tree,
               .qt = a.qt.as<float>().data() + (group * a.grid.tokens() + at.first) * gate_dim,
               .rows = rows,
               .tokens = at.tokens,
               .gate_dim = gate_dim,
               .candidates = at.candidates,
               .first_block = a.rule.sink_blocks,
               .kept = a.rule.kept});
}

bool needs_tree(const ScoreSelect& a, int64_t candidates) {
  return a.tree.enabled() && a.tree.first_level(candidates, a.rule.kept) > 0;
}

Stretch tile_stretch(const ScoreSelect& a, int64_t tile) {
  const GridRange place = find_tile(a.grid, tile);
  return {.segment = place.segment,
          .first = place.first,
          .tokens = place.tokens,
          .candidates = a.rule.candidates(place.position / a.grid.block)};
}

/// Tiles [begin, end) of a group. Tokens of one block go through the tree together.
void select_tiles(const ScoreSelect& a, int64_t group, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end;) {
    Stretch at = tile_stretch(a, tile++);
    SelectionRow rows[TreeQueries::kMostTokens];
    const bool tree = needs_tree(a, at.candidates);
    for (; tree && tile < end; ++tile) {
      const Stretch next = tile_stretch(a, tile);
      const int64_t tokens = at.tokens + next.tokens;
      if (next.segment != at.segment || next.candidates != at.candidates ||
          next.first != at.first + at.tokens || tokens > TreeQueries::kMostTokens) {
        break;
      }
      at.tokens = tokens;
    }
    open_rows(a, group, at, rows);
    if (at.candidates == 0) continue;
    if (tree) {
      select_in_tree(a, group, at, rows);
    } else {
      select_flat(a, group, at, rows);
    }
  }
}

}  // namespace

void score_select(ThreadPool& threads, const ScoreSelect& a) {
  constexpr int64_t kTilesPerTask = 16;
  check_block_count(a.grid, "score_select");
  const int64_t tiles = tile_count(a.grid);
  const int64_t groups = a.qt.shape()[0];
  const int64_t segments = a.grid.segments();
  if (a.tree.enabled()) {
    threads.for_each(groups * segments,
                     [&](int64_t i) { build_tree(a, i / segments, i % segments); });
  }
  threads.for_ranges(groups * tiles, kTilesPerTask, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t group = begin / tiles;
      const int64_t until = std::min(end, (group + 1) * tiles);
      select_tiles(a, group, begin - group * tiles, until - group * tiles);
      begin = until;
    }
  });
}

}  // namespace tessera::cpu
