#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <span>

#include "kernels/core/simd.h"
#include "kernels/gate_score_lanes.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace tessera::cpu {

/// Choosing for the 16 tokens of a tile at once: the tokens are the lanes of a vector, and slot i
/// of `keys` holds score_key of what each of them may choose.

/// score_key of 16 scores.
[[gnu::always_inline]] inline I32x16 keys_of(F32x16 scores) {
  const I32x16 bits = scores == scores ? std::bit_cast<I32x16>(scores) : I32x16{} - 1;
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

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

/// Per lane: `above` of the keys are at least `bound`. above >= wanted, and more only where keys
/// equal to the bound are too many.
struct Threshold {
  I32x16 bound;
  I32x16 above;
};
/// For 1 <= wanted <= keys.size().
Threshold find_threshold(std::span<const I32x16> keys, int32_t wanted);

/// Calls visit(tokens, slot) for slots that are among the `wanted` best of some of the first
/// `tokens` lanes, in ascending order of slot: bit t of the mask says that they are of lane t. Of
/// slots with equal keys the last ones win.
template <class Visit>
void for_best_slots(std::span<const I32x16> keys, int32_t wanted, int64_t tokens, Visit&& visit) {
  const Threshold threshold = find_threshold(keys, wanted);
  I32x16 surplus = threshold.above - wanted;  // how many keys equal to the bound are to be dropped
  const uint32_t tile = (1u << tokens) - 1;
  uint32_t tied = at_least(surplus, I32x16{} + 1) & tile;
  for (size_t slot = 0; slot < keys.size(); ++slot) {
    uint32_t best = at_least(keys[slot], threshold.bound) & tile;
    if ((best & tied) != 0) {
      const uint32_t dropped = best & tied & at_least(threshold.bound, keys[slot]);
      for (int t = 0; t < kLanes; ++t) surplus[t] -= static_cast<int32_t>(dropped >> t & 1);
      best &= ~dropped;
      tied = at_least(surplus, I32x16{} + 1) & tile;
    }
    if (best != 0) visit(best, static_cast<int64_t>(slot));
  }
}

/// Calls visit(token, slot, key) for each of these one by one.
template <class Visit>
void for_each_best(std::span<const I32x16> keys, int32_t wanted, int64_t tokens, Visit&& visit) {
  for_best_slots(keys, wanted, tokens, [&](uint32_t best, int64_t slot) {
    for (; best != 0; best &= best - 1) {
      const int t = std::countr_zero(best);
      visit(t, slot, keys[static_cast<size_t>(slot)][t]);
    }
  });
}

/// One row of a BlockSelection while it is filled in ascending order of block.
struct SelectionRow {
  int32_t* blocks;
  float* scores;
  int64_t used = 0;
  int64_t runner_up = 0;  ///< slot of the smallest score so far; of equal ones the smallest block
  int32_t runner_up_key = std::numeric_limits<int32_t>::max();

  void add(int64_t block, int32_t key) {
    if (key < runner_up_key) {
      runner_up_key = key;
      runner_up = used;
    }
    blocks[used] = static_cast<int32_t>(block);
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

}  // namespace tessera::cpu
