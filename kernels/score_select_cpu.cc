// Sixteen tokens of a tile are the lanes of a vector. They share their own block and so their
// candidates: scores are a small matrix product with one fused multiply-add per lane, key and
// dimension; the k + 1 best of a token are found by bisection between its smallest and largest
// score, counting; all lanes at once. Work: tokens * blocks / 2 * gate_dim multiply-adds, and
// about a fifth of that for the bisection.

#include <algorithm>
#include <bit>
#include <limits>
#include <vector>

#include "kernels/block_selection.h"
#include "kernels/core/simd.h"
#include "kernels/gate_score.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace tessera::cpu {

namespace {

constexpr int64_t kTile = SegmentGrid::kTile;
static_assert(kTile == kLanes);

/// Bit t: lane t of x is at least that of y.
[[gnu::always_inline]] inline uint32_t at_least(I32x16 x, I32x16 y) {
#if defined(__AVX512F__)
  return _mm512_cmpge_epi32_mask(std::bit_cast<__m512i>(x), std::bit_cast<__m512i>(y));
#else
  uint32_t mask = 0;
  for (int lane = 0; lane < kLanes; ++lane)
    mask |= static_cast<uint32_t>(x[lane] >= y[lane]) << lane;
  return mask;
#endif
}

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

I32x16 keys_of(F32x16 scores) {
  const I32x16 bits = scores == scores ? std::bit_cast<I32x16>(scores) : I32x16{} - 1;
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

F32x16 scores_of(I32x16 keys) {
  return std::bit_cast<F32x16>(keys ^ ((keys >> 31) & 0x7FFFFFFF));
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

/// Per lane: `above` of the keys are at least `bound`. above >= wanted, and more only where keys
/// equal to the bound are too many.
struct Threshold {
  I32x16 bound;
  I32x16 above;
};

/// A key in (low, high] where low < high. Halves the interval of scores, which are spread evenly;
/// in every fourth pass that of their bits, which is certain to end.
I32x16 split(I32x16 low, I32x16 high, int pass) {
  const U32x16 distance = std::bit_cast<U32x16>(high) - std::bit_cast<U32x16>(low);
  const I32x16 half_of_bits = high - std::bit_cast<I32x16>(distance >> 1);
  if (pass % 4 == 3) return half_of_bits;
  const I32x16 half = keys_of(0.5f * scores_of(low) + 0.5f * scores_of(high));
  return (half > low) & (half <= high) ? half : half_of_bits;
}

Threshold find_threshold(const std::vector<I32x16>& keys, int32_t wanted) {
  I32x16 low = keys[0];
  I32x16 high = keys[0];
  for (const I32x16& key : keys) {
    low = key < low ? key : low;
    high = key > high ? key : high;
  }
  // At least `wanted` keys are >= low, fewer are > high.
  I32x16 above = I32x16{} + static_cast<int32_t>(keys.size());
  const I32x16 target = I32x16{} + wanted;
  for (int pass = 0; (at_least(low, high) | at_least(target, above)) != 0xFFFF; ++pass) {
    const I32x16 middle = split(low, high, pass);
    I32x16 count{};
    for (const I32x16& key : keys) count -= key >= middle;
    const auto enough = count >= target;
    low = enough ? middle : low;
    above = enough ? count : above;
    // Of unsigned numbers: a lane whose keys are all the smallest number is not used, but computed.
    high = enough ? high : std::bit_cast<I32x16>(std::bit_cast<U32x16>(middle) - 1u);
  }
  return {low, above};
}

/// One row of a BlockSelection while it is filled in ascending order of block.
struct Row {
  int32_t* blocks;
  float* scores;
  int64_t used = 0;
  int64_t runner_up = 0;  // slot of the smallest score so far; of equal ones the smallest block
  int32_t runner_up_key = std::numeric_limits<int32_t>::max();
  int32_t surplus = 0;  // how many keys equal to the threshold are still to be dropped

  void add(int32_t block, int32_t key) {
    if (key < runner_up_key) {
      runner_up_key = key;
      runner_up = used;
    }
    blocks[used] = block;
    scores[used++] = score_of_key(key);
  }
  void move_runner_up_to_the_end() {
    std::rotate(blocks + runner_up, blocks + runner_up + 1, blocks + used);
    std::rotate(scores + runner_up, scores + runner_up + 1, scores + used);
  }
  void clear_from(int64_t slot, int64_t slots) {
    std::fill(blocks + slot, blocks + slots, -1);
    std::fill(scores + slot, scores + slots, 0.0f);
  }
};

/// Chooses for the tokens of a tile; `first_block` is the first candidate.
void choose(const std::vector<I32x16>& keys, int64_t first_block, int64_t kept, int64_t tokens,
            Row* rows) {
  const auto candidates = static_cast<int64_t>(keys.size());
  const auto block_of = [&](size_t i) {
    return static_cast<int32_t>(first_block) + static_cast<int32_t>(i);
  };
  if (candidates <= kept) {
    for (int64_t t = 0; t < tokens; ++t) {
      for (size_t i = 0; i < keys.size(); ++i) rows[t].add(block_of(i), keys[i][t]);
      rows[t].clear_from(candidates, kept + 1);
    }
    return;
  }
  const auto wanted = static_cast<int32_t>(kept + 1);
  const Threshold threshold = find_threshold(keys, wanted);
  for (int64_t t = 0; t < tokens; ++t) rows[t].surplus = threshold.above[t] - wanted;
  const uint32_t tile = (1u << tokens) - 1;
  for (size_t i = 0; i < keys.size(); ++i) {
    for (uint32_t mask = at_least(keys[i], threshold.bound) & tile; mask != 0; mask &= mask - 1) {
      const int t = std::countr_zero(mask);
      const int32_t key = keys[i][t];
      // Among equal scores the largest blocks win, so the first ones go.
      if (rows[t].surplus > 0 && key == threshold.bound[t]) {
        --rows[t].surplus;
      } else {
        rows[t].add(block_of(i), key);
      }
    }
  }
  for (int64_t t = 0; t < tokens; ++t) rows[t].move_runner_up_to_the_end();
}

void select_tile(const ScoreSelect& a, int64_t group, int64_t tile) {
  const GridRange place = find_tile(a.grid, tile);
  const int64_t gate_dim = a.qt.shape()[2];
  const int64_t slots = a.rule.kept + 1;
  const int64_t candidates = a.rule.candidates(place.position / a.grid.block);
  const int64_t first_token = group * a.grid.tokens() + place.first;
  const auto counts = a.selection.counts.as<int32_t>();
  Row rows[kTile];
  for (int64_t t = 0; t < place.tokens; ++t) {
    rows[t].blocks = a.selection.blocks.as<int32_t>().data() + (first_token + t) * slots;
    rows[t].scores = a.selection.scores.as<float>().data() + (first_token + t) * slots;
    counts[static_cast<size_t>(first_token + t)] =
        static_cast<int32_t>(std::min(candidates, a.rule.kept));
    if (candidates == 0) rows[t].clear_from(0, slots);
  }
  if (candidates == 0) return;
  const auto block_starts = a.grid.block_starts.as<int32_t>();
  const int64_t first_key =
      group * a.kt.shape()[1] +
      (block_starts[static_cast<size_t>(place.segment)] + a.rule.sink_blocks) * a.gate_keys;
  Scratch& scratch = scratch_of_this_thread();
  score_tile({.qt = a.qt.as<float>().data() + first_token * gate_dim,
              .kt = a.kt.as<float>().data() + first_key * gate_dim,
              .tokens = place.tokens,
              .candidates = candidates,
              .gate_dim = gate_dim,
              .gate_keys = a.gate_keys},
             scratch);
  choose(scratch.keys, a.rule.sink_blocks, a.rule.kept, place.tokens, rows);
}

}  // namespace

void score_select(ThreadPool& threads, const ScoreSelect& a) {
  constexpr int64_t kTilesPerTask = 4;
  check_block_count(a.grid, "score_select");
  const int64_t tiles = tile_count(a.grid);
  const int64_t groups = a.qt.shape()[0];
  threads.for_ranges(groups * tiles, kTilesPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) select_tile(a, i / tiles, i % tiles);
  });
}

}  // namespace tessera::cpu
