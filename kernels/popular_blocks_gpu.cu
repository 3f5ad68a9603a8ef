#include <algorithm>

#include "kernels/core/block_scan.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/core/workspace.h"
#include "kernels/popular_blocks.cuh"

// One block of threads per group goes over its blocks of keys: some thousand numbers.

namespace tessera::gpu {
namespace {

/// How many tiles attend to a block, or would if the tokens it is forced on were in whole ones.
__device__ int tiles_of_block(const Choices& choices, const BlockTiles& lists, const GridView& grid,
                              int place, int block) {
  const int32_t* const offset = lists.offsets + place * lists.offsets_of_group + block;
  const int segment = range_of(grid.block_starts, grid.segments, block);
  const int number = block - grid.block_starts[segment];
  const int first = number * grid.block;
  const int end = end_of_forced(choices, number, grid.block);
  int forced = 0;
  for (int i = grid.pieces.begin_of(segment); i < grid.pieces.begin_of(segment + 1); ++i) {
    forced +=
        std::max(0, std::min(end, grid.pieces.end(i)) - std::max(first, grid.pieces.first(i)));
  }
  return offset[1] - offset[0] + forced / static_cast<int>(SegmentGrid::kTile);
}

constexpr int kPopularThreads = 256;

/// Four times the mean is popular; a chunk is as long as that. blockIdx.x is a group.
__global__ void __launch_bounds__(kPopularThreads)
    find_popular_blocks(PopularBlocks to, Choices choices, BlockTiles lists, GridView grid) {
  constexpr int kTimesMean = 4;
  constexpr int kLeast = 16;  // tiles
  SharedMemory shared;
  int* const scratch = shared.take<int>(kWarpSize);
  const auto place = static_cast<int>(blockIdx.x);
  const auto lane = static_cast<int>(threadIdx.x);
  const int blocks = std::min(grid.block_count(), to.max_blocks);
  int32_t* const chunks = to.chunks + int64_t{place} * to.max_blocks;
  int32_t* const first_slot = to.first_slot + int64_t{place} * to.max_blocks;
  int32_t* const slot_block = to.slot_block + int64_t{place} * to.slots;
  for (int i = lane; i < to.slots; i += kPopularThreads) slot_block[i] = -1;
  int own = 0;
  for (int b = lane; b < blocks; b += kPopularThreads) {
    chunks[b] = tiles_of_block(choices, lists, grid, place, b);
    own += chunks[b];
  }
  int total;
  block_prefix_sum(own, scratch, total);
  const int length = std::max(int{kLeast}, kTimesMean * (total / std::max(1, blocks)));
  int used = 0;
  for (int first = 0; first < blocks; first += kPopularThreads) {
    const int b = first + lane;
    const int tiles = b < blocks ? chunks[b] : 0;
    int wanted = tiles > length ? (tiles + length - 1) / length : 0;
    __syncthreads();  // scratch is used again
    int here;
    const int until = used + block_prefix_sum(wanted, scratch, here);
    const int slot = until - wanted;
    if (until > to.slots) wanted = 0;  // no room: it is done in one piece
    if (b < blocks) {
      chunks[b] = wanted;
      first_slot[b] = slot;
    }
    for (int i = 0; i < wanted; ++i) slot_block[slot + i] = b;
    used += here;
  }
}

}  // namespace

PopularBlocks popular_blocks(Stream& stream, const Choices& choices, const BlockTiles& lists,
                             const GridView& grid, int64_t groups, int64_t panels,
                             int64_t numbers) {
  constexpr int64_t kPartialBytes = Stream::kWorkspaceBytes / 4 * 3;
  const int64_t bytes = groups * panels * numbers * int64_t{sizeof(float)};
  // Rarely are there more: chunks of four times the mean, or more than half of that at the end.
  const int64_t slots = std::min<int64_t>(grid.max_blocks / 2 + 2, kPartialBytes / bytes);
  Workspace workspace(stream, "sparse_attention_backward");
  const PopularBlocks popular{.chunks = workspace.take<int32_t>(groups * grid.max_blocks),
                              .first_slot = workspace.take<int32_t>(groups * grid.max_blocks),
                              .slot_block = workspace.take<int32_t>(groups * slots),
                              .partials = workspace.take<float>(slots * (bytes / 4)),
                              .slots = static_cast<int>(slots),
                              .max_blocks = grid.max_blocks,
                              .numbers = numbers};
  launch(stream, find_popular_blocks, dim3(static_cast<unsigned>(groups)), kPopularThreads,
         shared_bytes_of<int>(kWarpSize), popular, choices, lists, grid);
  return popular;
}

}  // namespace tessera::gpu
