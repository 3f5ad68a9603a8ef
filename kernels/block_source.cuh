#pragma once

#include <algorithm>

#include "kernels/attendees.cuh"
#include "kernels/attention_backward.cuh"
#include "kernels/block_walk.cuh"
#include "kernels/core/block_scan.cuh"
#include "kernels/popular_blocks.cuh"
#include "kernels/sparse_attention.h"

/// Which tokens attend to a block in sparse attention, for the kernels of dk and dv: those that it
/// is forced on, a range, and those that chose it. The block's list is unpacked, and only rows of
/// these tokens are read and multiplied, however few of a tile they are.
namespace tessera::gpu {

/// The tokens that attend to a panel of a block.
class BlockSource {
 public:
  struct Arguments {
    Choices choices;
    BlockTiles lists;
    PopularBlocks popular;
  };

  static constexpr bool kGather = true;
  __device__ static int window_of(const Arguments&) { return kMostReach; }
  __device__ static int sinks_of(const Arguments&, const KeyTask&) { return 0; }

  template <class T>
  __device__ static KeyTask find(const Arguments& of, const BackwardOperands<T>& a, int keys,
                                 KeyPass pass) {
    const PopularBlocks& popular = of.popular;
    const int per_block = (a.grid.block + keys - 1) / keys;
    const int panel = static_cast<int>(blockIdx.x) % per_block;
    KeyTask task;
    task.place = static_cast<int>(blockIdx.y);
    const int64_t first_block = int64_t{task.place} * popular.max_blocks;
    int block = static_cast<int>(blockIdx.x) / per_block;
    if (pass == KeyPass::kWhole) {
      if (block >= a.grid.block_count() || popular.chunks[first_block + block] > 0) return task;
    } else {
      const int slot = block;
      block = popular.slot_block[int64_t{task.place} * popular.slots + slot];
      if (block < 0) return task;
      task.chunk = slot - popular.first_slot[first_block + block];
      task.chunks = popular.chunks[first_block + block];
      if (pass == KeyPass::kSums && task.chunk > 0) return task;
      const int64_t place = int64_t{task.place} * per_block + panel;
      task.partial = popular.partials + (place * popular.slots + slot) * popular.numbers;
    }
    const GridRange range = find_block(a.grid, block);
    task.segment = range.segment;
    task.first = range.position + panel * keys;
    task.row = range.first + panel * keys;
    task.count = std::clamp(range.tokens - panel * keys, 0, keys);
    return task;
  }

  template <class T>
  __device__ BlockSource(const Arguments& of, const BackwardOperands<T>& a, const KeyTask& task)
      : of_(of),
        grid_(a.grid),
        forced_(a.grid.pieces, task, task.first,
                end_of_forced(of.choices, task.first / a.grid.block, a.grid.block)) {
    const int32_t* const offsets = of.lists.offsets + task.place * of.lists.offsets_of_group +
                                   a.grid.block_starts[task.segment] + task.first / a.grid.block;
    const int64_t entries = offsets[1] - offsets[0];
    entry_ = offsets[0] + static_cast<int>(entries * task.chunk / task.chunks);
    end_ = offsets[0] + static_cast<int>(entries * (task.chunk + 1) / task.chunks);
  }

  __device__ int fill(const Attendees& attendees) {
    int used = forced_.fill(attendees, 0);
    if (used == 0 && entry_ < end_) {
      if (threadIdx.x < kWarpSize) unpack(attendees);
      __syncthreads();
      used = attendees.scratch()[0];
      entry_ = attendees.scratch()[1];
      for (int i = static_cast<int>(threadIdx.x); i < used; i += static_cast<int>(blockDim.x)) {
        attendees.bias()[i] = gate_of<false>(attendees.token()[i]);
      }
    }
    __syncthreads();
    return used;
  }
  /// How many tokens, at most `most`, come next; 0 behind the last. By whole warps, each of which
  /// has 32 entries of the list at a time; either next and at, or fill.
  __device__ int next(int most) {
    const int forced = forced_.next(most);
    unpacked_ = forced == 0;
    if (forced > 0) return forced;
    while (taken_ == total_) {
      if (entry_ >= end_) return 0;
      read_entries();
    }
    first_ = taken_;
    taken_ = std::min(total_, first_ + most);
    return taken_ - first_;
  }
  /// The i-th of them; behind the last, the last of the warp's entries.
  __device__ Attendee at(int i) const {
    if (!unpacked_) return forced_.at(i);
    const int number = std::min(first_ + i, total_ - 1);
    int lane = 0;  // of its entry: as many as have no token behind it
    for (int step = kWarpSize / 2; step > 0; step /= 2) {
      if (__shfl_sync(kWholeWarp, until_, lane + step - 1) <= number) lane += step;
    }
    unsigned mask = __shfl_sync(kWholeWarp, mask_, lane);
    int before = __shfl_sync(kWholeWarp, until_, lane) - __popc(mask);
    for (; before < number; ++before) mask &= mask - 1;
    const int position =
        __shfl_sync(kWholeWarp, position_, lane) + __ffs(static_cast<int>(mask)) - 1;
    const int token = __shfl_sync(kWholeWarp, origin_, lane) + position;
    return {token, position, gate_of<true>(token)};
  }
  __device__ int window() const { return kMostReach; }
  __device__ int sinks() const { return 0; }

 private:
  /// The next entries of the list, a lane each, as far as their tokens fit.
  __device__ void unpack(const Attendees& attendees) {
    const auto lane = static_cast<int>(threadIdx.x);
    const int64_t first = place() * of_.choices.capacity;
    int used = 0;
    int entry = entry_;
    while (entry < end_) {
      const bool valid = entry + lane < end_;
      unsigned mask = valid ? of_.lists.masks[first + entry + lane] : 0u;
      const int own = __popc(mask);
      int until = own;  // tokens of the lanes up to this one
      for (int offset = 1; offset < kWarpSize; offset *= 2) {
        const int before = __shfl_up_sync(kWholeWarp, until, static_cast<unsigned>(offset));
        if (lane >= offset) until += before;
      }
      const bool fits = valid && used + until <= Attendees::kMost;
      if (fits) {
        const GridRange tile = find_tile(grid_, of_.lists.tiles[first + entry + lane]);
        for (int i = used + until - own; mask != 0; mask &= mask - 1, ++i) {
          const int position = tile.number * static_cast<int>(SegmentGrid::kTile) +
                               __ffs(static_cast<int>(mask)) - 1;
          attendees.token()[i] = tile.first + position - tile.position;
          attendees.position()[i] = position;
        }
      }
      const int taken = __popc(__ballot_sync(kWholeWarp, fits));
      if (taken == 0) break;
      used += __shfl_sync(kWholeWarp, until, taken - 1);
      entry += taken;
      if (taken < kWarpSize) break;
    }
    if (lane == 0) {
      attendees.scratch()[0] = used;
      attendees.scratch()[1] = entry;
    }
  }

  /// The next 32 entries, a lane each.
  __device__ void read_entries() {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const int64_t entry = place() * of_.choices.capacity + entry_ + lane;
    const bool valid = entry_ + lane < end_;
    mask_ = valid ? of_.lists.masks[entry] : 0u;
    until_ = warp_prefix_sum(__popc(mask_));
    if (valid) {
      const GridRange tile = find_tile(grid_, of_.lists.tiles[entry]);
      position_ = tile.number * static_cast<int>(SegmentGrid::kTile);
      origin_ = tile.first - tile.position;
    }
    total_ = __shfl_sync(kWholeWarp, until_, kWarpSize - 1);
    taken_ = 0;
    entry_ += kWarpSize;
  }

  // Not members: registers are scarce.
  __device__ static int place() { return static_cast<int>(blockIdx.y); }
  __device__ int block() const { return forced_.begin() / grid_.block; }

  /// log2 of the gate by which a token chose the block. kSilent: see device_check.
  template <bool kSilent>
  __device__ float gate_of(int token) const {
    const Choices& choices = of_.choices;
    const int64_t row = choices.row(place(), token);
    const int block = this->block();
    const int count = of_.lists.counts[place() * choices.tokens + token];
    int slot = 0;
    for (int left = std::min(count, choices.kept); left > 0;) {
      const int half = left / 2;
      const bool below = choices.blocks[row + slot + half] < block;
      slot += below ? half + 1 : 0;
      left = below ? left - half - 1 : half;
    }
    device_check<kSilent>(slot < choices.kept && choices.blocks[row + slot] == block,
                          "sparse_attention: the lists have a block that its token did not choose");
    const TokenGate gate(choices, row);
    if (!gate.gated) return 0;
    return log2_gate(choices.scores[row + slot], gate.tau, choices.strength,
                     choices.widths[place()]);
  }

  const Arguments& of_;
  const GridView& grid_;
  AttendeeRange forced_;
  int entry_;
  int end_;

  // For `next`: this lane's entry, and which tokens of the warp's entries come next.
  unsigned mask_ = 0;
  int until_ = 0;  // tokens up to this entry
  int position_ = 0;
  int origin_ = 0;  // row of q of position 0
  int total_ = 0;
  int taken_ = 0;
  int first_ = 0;
  bool unpacked_ = false;
};

inline BlockTiles block_tiles(const SparseAttentionBackward& a) {
  return {.offsets = a.lists.block_offsets.as<int32_t>().data(),
          .tiles = a.lists.block_tiles.as<int32_t>().data(),
          .masks = a.lists.block_masks.as<uint16_t>().data(),
          .counts = a.selection.counts.as<int32_t>().data(),
          .offsets_of_group = a.lists.block_offsets.shape()[1]};
}

}  // namespace tessera::gpu
