#include <algorithm>

#include "kernels/attention_key_gradient.cuh"
#include "kernels/attention_query_gradient.cuh"
#include "kernels/block_walk.cuh"
#include "kernels/core/cuda_check.h"
#include "kernels/popular_blocks.cuh"
#include "kernels/sparse_attention.h"

// Backward of sparse attention. dq goes through a tile's blocks as forward does; dk and dv of a
// block through the tokens that it is forced on, a range, and those that chose it: the block's list
// is unpacked some hundred tokens at a time, and only rows of these are read and multiplied,
// however few of a tile they are.

namespace tessera::gpu {
namespace {

struct QueryArguments {
  Choices choices;
  float* dlog_gate;  // [groups, tokens, kept]
};

template <int kPanel>
class Walk : public BlockWalk<kPanel> {
 public:
  using Arguments = QueryArguments;
  static constexpr bool kChoices = true;

  __device__ Walk(const QueryArguments& a, const GridView& grid, const QueryTile& tile,
                  const LaneRows& rows)
      : BlockWalk<kPanel>(a.choices, grid, tile, rows) {}
};

/// The tokens that attend to a panel of a block.
class BlockSource {
 public:
  struct Arguments {
    Choices choices;
    BlockTiles lists;
    PopularBlocks popular;
  };

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
        attendees.bias()[i] = gate_of(attendees.token()[i]);
      }
    }
    __syncthreads();
    return used;
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

  // Not members: registers are scarce.
  __device__ static int place() { return static_cast<int>(blockIdx.y); }
  __device__ int block() const { return forced_.begin() / grid_.block; }

  /// log2 of the gate by which a token chose the block.
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
    device_check(slot < choices.kept && choices.blocks[row + slot] == block,
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
};

BlockTiles block_tiles(const SparseAttentionBackward& a) {
  return {.offsets = a.lists.block_offsets.as<int32_t>().data(),
          .tiles = a.lists.block_tiles.as<int32_t>().data(),
          .masks = a.lists.block_masks.as<uint16_t>().data(),
          .counts = a.selection.counts.as<int32_t>().data(),
          .offsets_of_group = a.lists.block_offsets.shape()[1]};
}

}  // namespace

void sparse_attention_backward(Stream& stream, const SparseAttentionBackward& a) {
  constexpr const char* kWho = "sparse_attention_backward";
  attention_delta(stream, delta_of(a));
  float* const dlog_gate = a.dlog_gate.as<float>().data();
  CUDA_CHECK(cudaMemsetAsync(dlog_gate, 0, static_cast<size_t>(a.dlog_gate.bytes()),
                             static_cast<cudaStream_t>(stream.handle())));
  if (a.groups.empty()) return;
  const Choices choices = choices_of(a);
  with_float_type(a.q.dtype(), [&]<class T>() {
    const BackwardOperands<T> operands = backward_operands<T>(a, kWho);
    with_head_dim(a.q.shape()[2], [&]<int kD>() {
      start_query_gradient<T, kD, Walk>(stream, operands, QueryArguments{choices, dlog_gate},
                                        a.groups.size());
      constexpr int64_t kKeys = KeyGradientShape<T, kD>::kKeys;
      const int64_t panels = (a.grid.block + kKeys - 1) / kKeys;
      const BlockTiles lists = block_tiles(a);
      const PopularBlocks popular =
          popular_blocks(stream, choices, lists, operands.grid,
                         static_cast<int64_t>(a.groups.size()), panels, 2 * kKeys * kD);
      const int64_t slots = popular.slots * panels;
      start_key_gradient<T, kD, BlockSource>(
          stream, operands, {choices, lists, popular},
          {.whole = a.grid.max_blocks() * panels, .chunks = slots, .sums = slots}, a.groups.size());
    });
  });
}

}  // namespace tessera::gpu
