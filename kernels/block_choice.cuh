#pragma once

#include "kernels/core/device_math.cuh"
#include "kernels/gate_score.h"

/// Choosing the best of some scores by a warp, from their keys (score_key) in shared memory: the
/// device twin of tile_choice.h. Whole numbers only, so the choice is that of the CPU to the last
/// one. All lanes of the warp call these functions with the same arguments.
namespace tessera::gpu {

/// The `wanted` best keys are those above `key`, and all that equal it but the first `dropped`.
struct Bound {
  int32_t key;
  int dropped;
};

/// A key in (low, high] where low < high. Halves the interval of scores, which are spread evenly;
/// in every fourth pass that of their keys, which is certain to end.
__device__ __forceinline__ int32_t split_keys(int32_t low, int32_t high, int pass) {
  const uint32_t distance = static_cast<uint32_t>(high) - static_cast<uint32_t>(low);
  const int32_t half_of_keys = high - static_cast<int32_t>(distance / 2);
  if (pass % 4 == 3) return half_of_keys;
  const int32_t half = score_key(0.5f * score_of_key(low) + 0.5f * score_of_key(high));
  return half > low && half <= high ? half : half_of_keys;
}

/// For 1 <= wanted <= count.
__device__ __forceinline__ Bound find_bound(const int32_t* keys, int count, int wanted) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  int32_t low = keys[0];
  int32_t high = keys[0];
  for (int i = lane; i < count; i += kWarpSize) {
    low = keys[i] < low ? keys[i] : low;
    high = keys[i] > high ? keys[i] : high;
  }
  low = __reduce_min_sync(kWholeWarp, low);
  high = __reduce_max_sync(kWholeWarp, high);
  int above = count;  // keys >= low: at least `wanted`; fewer are > high
  for (int pass = 0; low < high && above > wanted; ++pass) {
    const int32_t middle = split_keys(low, high, pass);
    int found = 0;
    for (int i = lane; i < count; i += kWarpSize) found += keys[i] >= middle;
    found = __reduce_add_sync(kWholeWarp, found);
    if (found >= wanted) {
      low = middle;
      above = found;
    } else {
      high = middle - 1;
    }
  }
  if (above > wanted) return {low, above - wanted};
  int32_t least = high;
  for (int i = lane; i < count; i += kWarpSize) {
    if (keys[i] >= low && keys[i] < least) least = keys[i];
  }
  return {__reduce_min_sync(kWholeWarp, least), 0};
}

/// Calls visit(fetch(slot), key, rank) for the slots that a bound lets through, in the lane that
/// has the slot; ranks ascend with the slots. The last of the dropped ones comes with rank -1.
/// What fetch and visit touch may be the same memory, as long as rank r takes a place <= slot r.
template <class Fetch, class Visit>
__device__ __forceinline__ void for_each_best(const int32_t* keys, int count, Bound bound,
                                              Fetch fetch, Visit visit) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const unsigned lower = (1u << lane) - 1;
  int left = bound.dropped;
  int rank = 0;
  for (int base = 0; base < count; base += kWarpSize) {
    const int slot = base + lane;
    const bool valid = slot < count;
    const int32_t key = valid ? keys[slot] : 0;
    const int32_t item = valid ? fetch(slot) : 0;
    const bool tied = valid && key == bound.key;
    const unsigned ties = __ballot_sync(kWholeWarp, tied);
    const int tie = __popc(ties & lower);
    const bool best = valid && (key > bound.key || (tied && tie >= left));
    const unsigned all = __ballot_sync(kWholeWarp, best);
    __syncwarp();
    if (best) visit(item, key, rank + __popc(all & lower));
    if (tied && tie == left - 1) visit(item, key, -1);
    left -= __popc(ties) < left ? __popc(ties) : left;
    rank += __popc(all);
    __syncwarp();
  }
}

/// A row of a BlockSelection in global memory.
struct SelectionRow {
  int32_t* blocks;  // [kept + 1]
  float* scores;    // [kept + 1]
  int kept;

  __device__ void set(int slot, int block, int32_t key) const {
    blocks[slot] = block;
    scores[slot] = score_of_key(key);
  }
};

/// The whole row of a token with more than `kept` candidates, of which these have the kept + 1
/// best, in ascending order; block_of(slot) is their block.
template <class BlockOf>
__device__ __forceinline__ void write_best(const SelectionRow& row, const int32_t* keys, int count,
                                           BlockOf block_of) {
  Bound bound = find_bound(keys, count, row.kept + 1);
  // The runner-up is the smallest key, and of equal ones the smallest block: one more to drop.
  ++bound.dropped;
  for_each_best(keys, count, bound, block_of, [&](int block, int32_t key, int rank) {
    row.set(rank < 0 ? row.kept : rank, block, key);
  });
}

/// The row of a token whose `count` <= kept candidates are all chosen.
template <class BlockOf>
__device__ __forceinline__ void write_all(const SelectionRow& row, const int32_t* keys, int count,
                                          BlockOf block_of) {
  for (int i = static_cast<int>(threadIdx.x) % kWarpSize; i <= row.kept; i += kWarpSize) {
    if (i < count) {
      row.set(i, block_of(i), keys[i]);
    } else {
      row.blocks[i] = -1;
      row.scores[i] = 0;
    }
  }
}

}  // namespace tessera::gpu
