#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/core/device_check.cuh"
#include "kernels/key_panel.cuh"
#include "kernels/sparse_attention.h"

namespace tessera::gpu {

/// What the tokens of the groups of a call chose, for a kernel's arguments.
struct Choices {
  const int32_t* tile_offsets;  ///< [groups, offsets]
  const int32_t* tile_blocks;   ///< [groups, capacity]
  const uint16_t* tile_masks;   ///< [groups, capacity]
  int64_t offsets;
  int64_t capacity;
  const int32_t* blocks;  ///< [groups, tokens, kept + 1]
  const float* scores;    ///< [groups, tokens, kept + 1]
  const int32_t* counts;  ///< [groups, tokens]
  const float* widths;    ///< [groups]
  float strength;
  int64_t tokens;
  int kept;
  int sink_blocks;
  int window_blocks;

  __device__ int64_t row(int place, int token) const {
    return (place * tokens + token) * (kept + 1);
  }
};
/// Of the arguments of a kernel, forward or backward.
template <class A>
Choices choices_of(const A& a) {
  return {.tile_offsets = a.lists.tile_offsets.template as<int32_t>().data(),
          .tile_blocks = a.lists.tile_blocks.template as<int32_t>().data(),
          .tile_masks = a.lists.tile_masks.template as<uint16_t>().data(),
          .offsets = a.lists.tile_offsets.shape()[1],
          .capacity = a.lists.tile_blocks.shape()[1],
          .blocks = a.selection.blocks.template as<int32_t>().data(),
          .scores = a.selection.scores.template as<float>().data(),
          .counts = a.selection.counts.template as<int32_t>().data(),
          .widths = a.ramp.widths.template as<float>().data(),
          .strength = a.ramp.strength,
          .tokens = a.grid.tokens(),
          .kept = static_cast<int>(a.rule.kept),
          .sink_blocks = static_cast<int>(std::min<int64_t>(a.rule.sink_blocks, kMostReach)),
          .window_blocks = static_cast<int>(std::min<int64_t>(a.rule.window_blocks, kMostReach))};
}

/// log2 of a gate: log_gate of kernels/sparse_attention.h, for scores in powers of two.
__device__ __forceinline__ float log2_gate(float z, float tau, float strength, float width) {
  const float u = (z - tau) / width;
  return u >= 1 ? 0.0f : log2f((1 - strength) + strength * fmaxf(u, 0.0f));
}

/// The gate of one token's chosen blocks.
struct TokenGate {
  bool gated;  ///< something was dropped
  float tau;   ///< the runner-up's score

  __device__ TokenGate() = default;
  __device__ TokenGate(const Choices& a, int64_t row)
      : gated(a.blocks[row + a.kept] >= 0), tau(a.scores[row + a.kept]) {}
};

/// Sparse attention: the forced blocks of a query tile's tokens and the blocks that some of them
/// chose, in ascending order, cut into panels. Lane t of a warp keeps the place in the list of the
/// t-th tile of 16 tokens; all warps go through them alike and without a word to each other. What
/// the next panel needs from memory is asked for while the one before is worked on.
/// kSilent: see device_check.
template <int kPanel, bool kSilent = false>
class BlockWalk {
 public:
  __device__ BlockWalk(const Choices& choices, const GridView& grid, const QueryTile& tile,
                       const LaneRows& rows)
      : a_(choices),
        rows_(rows),
        block_tokens_(grid.block),
        place_(tile.place),
        first_tile_(tile.first / SegmentGrid::kTile),
        width_(choices.widths[tile.place]) {
    const int run = grid.runs.begin_of(tile.segment);
    const bool here = run < grid.runs.size && grid.runs.segment(run) == tile.segment;
    device_check<kSilent>(
        here && grid.runs.first(run) == 0 && grid.runs.end(run) >= tile.end(),
        "sparse_attention: the keys of a segment are not one run from its first to its "
        "last query's position");
    origin_ = grid.runs.row(run);
    end_ = tile.end();
    run_end_ = grid.runs.end(run);

    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    if (first_tile_ + lane <= (tile.end() - 1) / SegmentGrid::kTile) {
      const int number = grid.tile_starts[tile.piece] + first_tile_ + lane -
                         grid.pieces.first(tile.piece) / SegmentGrid::kTile;
      const int32_t* const offset = a_.tile_offsets + tile.place * a_.offsets + number;
      own_block_ = (first_tile_ + lane) * SegmentGrid::kTile / block_tokens_;
      entry_ = offset[0];
      entries_left_ = offset[1] - offset[0];
    }
    read_entry();
    for (int half = 0; half < 2; ++half) gate_[half] = TokenGate(a_, first_slot(half));
  }

  __device__ bool next(Panel& panel) {
    first_of_block_ = key_ >= block_end_;
    if (first_of_block_ && !enter_block()) return false;
    panel = panel_ = {key_, std::min(kPanel, block_end_ - key_), origin_ + key_};
    key_ += kPanel;
    return true;
  }

  __device__ PanelView view() {
    PanelView view;
    const bool any = __any_sync(kWholeWarp, sees_[0] || sees_[1]);
    const bool all = __all_sync(kWholeWarp, sees_[0] && sees_[1]);
    view.strips = {0, 0, false};
    if (any) {
      view.strips = seen_strips(rows_.lowest - panel_.first, rows_.highest - panel_.first,
                                panel_.count, kMostReach, 0, kPanel);
      view.strips.whole = view.strips.whole && all;
    }
    for (int half = 0; half < 2; ++half) {
      view.seen[half] =
          SeenKeys::of(rows_.position[half], panel_.first, panel_.count, kMostReach, 0);
      if (!sees_[half]) view.seen[half].high = -1;
      const bool gated = slot_[half] >= 0 && gate_[half].gated;
      view.bias[half] =
          gated ? log2_gate(score_[half], gate_[half].tau, a_.strength, width_) : 0.0f;
    }
    return view;
  }

  /// Of the panel that `next` told last, for a row of this lane: the slot of its block, -1 unless
  /// it was chosen.
  __device__ int slot(int half) const { return slot_[half]; }
  __device__ bool first_of_block() const { return first_of_block_; }
  /// As WindowWalk's.
  __device__ bool unit_sees() const { return unit_sees_; }
  __device__ int keys_of_run() const { return run_end_ - panel_.first; }
  /// In the end: whether the lists had as many blocks of the tokens as these chose.
  __device__ bool lists_fit() const {
    return slots_[0] == a_.counts[place_ * a_.tokens + rows_.token[0]] &&
           slots_[1] == a_.counts[place_ * a_.tokens + rows_.token[1]];
  }
  /// Stops the kernel when they did not.
  __device__ static void check(bool lists_fit) {
    device_check<kSilent>(lists_fit,
                          "sparse_attention: the lists have other blocks of a token than it chose");
  }
  __device__ void check() const { check(lists_fit()); }

 private:
  static constexpr int kNone = std::numeric_limits<int>::max();
  static constexpr unsigned kForced = 1u << 16;  // above the 16 tokens of a tile

  /// Of a row's token, among all slots.
  __device__ int64_t first_slot(int half) const { return a_.row(place_, rows_.token[half]); }
  __device__ void read_entry() {
    const int64_t entry = place_ * a_.capacity + entry_;
    listed_ = entries_left_ > 0 ? a_.tile_blocks[entry] : kNone;
    mask_ = entries_left_ > 0 ? a_.tile_masks[entry] : 0u;
  }

  /// The least block after the last one that some tile attends to.
  __device__ bool enter_block() {
    int first = listed_;
    if (next_block_ <= own_block_) {
      const int forced = next_block_ < a_.sink_blocks
                             ? next_block_
                             : std::max(next_block_, own_block_ - a_.window_blocks + 1);
      first = std::min(first, forced);
    }
    const int block = __reduce_min_sync(kWholeWarp, first);
    if (block == kNone) return false;
    const bool forced =
        block <= own_block_ && (block < a_.sink_blocks || block > own_block_ - a_.window_blocks);
    unsigned tokens = forced ? kForced : 0;
    if (listed_ == block) {
      tokens |= mask_;
      ++entry_;
      --entries_left_;
      read_entry();
    }
    const int tile = first_tile_ + static_cast<int>(threadIdx.x) % kWarpSize;
    unit_sees_ = __any_sync(kWholeWarp, tokens != 0 && tile >= rows_.lowest / SegmentGrid::kTile &&
                                            tile <= rows_.highest / SegmentGrid::kTile) != 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int position = rows_.position[half];
      const unsigned of_tile =
          __shfl_sync(kWholeWarp, tokens, position / SegmentGrid::kTile - first_tile_);
      const bool chosen = (of_tile >> position % SegmentGrid::kTile & 1) != 0;
      sees_[half] = chosen || (of_tile & kForced) != 0;
      slot_[half] = chosen ? std::min(slots_[half]++, a_.kept - 1) : -1;
      // Lists with more of them than there are slots are found out by check.
      if (chosen) score_[half] = a_.scores[first_slot(half) + slot_[half]];
    }
    next_block_ = block + 1;
    key_ = block * block_tokens_;
    block_end_ = std::min(key_ + block_tokens_, end_);
    return true;
  }

  const Choices& a_;
  const LaneRows& rows_;
  int block_tokens_;
  int place_;
  int first_tile_;  // of the query tile, within the segment
  float width_;
  int origin_;  // row of k of position 0
  int end_;     // behind the last position that is seen
  int run_end_;

  // The tile of this lane; other lanes have none.
  int own_block_ = -1;
  int entry_ = 0;
  int entries_left_ = 0;
  int listed_ = kNone;  // block of the entry
  unsigned mask_ = 0;

  Panel panel_;
  int next_block_ = 0;
  int key_ = 0;
  int block_end_ = 0;
  bool first_of_block_ = false;
  bool unit_sees_ = false;

  // The two rows of this lane.
  TokenGate gate_[2];
  int slots_[2] = {0, 0};  // of the next chosen block
  bool sees_[2];
  int slot_[2];
  float score_[2];
};

}  // namespace tessera::gpu
