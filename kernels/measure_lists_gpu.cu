#include <algorithm>

#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/core/workspace.h"
#include "kernels/gate_measure.h"
#include "kernels/segment_grid.cuh"

// The lists are read twice: a warp per tile adds up what the tiles chose, and a warp per key block
// how often it was chosen. All sums are of whole numbers, so that their order does not matter.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kTilesPerBlock = 64;
constexpr int kDistances = GateFigures::kDistances;
constexpr int kCounts = GateFigures::kBlocks - GateFigures::kTiles;

constexpr int at(int figure) {
  return figure - GateFigures::kTiles;
}

struct Lists {
  const int32_t* tile_offsets;  // [groups, tiles + 1]
  const int32_t* tile_blocks;   // [groups, capacity]
  const uint16_t* tile_masks;
  const int32_t* block_offsets;  // [groups, blocks + 1]
  const int32_t* block_tiles;
  const uint16_t* block_masks;
  GridView grid;
  int64_t capacity;
  int max_tiles;
  int sink_blocks;
  int window_blocks;
  int kept;

  __device__ int candidates(int own) const {
    return std::max(0, own - window_blocks + 1 - sink_blocks);
  }
};

__device__ int distance_bin(int distance) {
  return std::min(kDistances - 1, 31 - __clz(distance));
}

/// Candidates of a token with own block `own` whose distance is in bin `bin`.
__device__ int candidates_at(const Lists& a, int own, int bin) {
  const int farthest = own - a.sink_blocks;
  const int end = bin == kDistances - 1 ? farthest + 1 : 2 << bin;
  const int first = std::max(a.window_blocks, 1 << bin);
  return std::max(0, std::min(farthest + 1, end) - first);
}

__device__ void count_tile(const Lists& a, int group, int tile, unsigned* counts) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const GridRange range = find_tile(a.grid, tile);
  const int own = range.position / a.grid.block;
  const bool drops = a.candidates(own) > a.kept;
  const int32_t* const bounds = a.tile_offsets + int64_t{group} * (a.max_tiles + 1) + tile;
  for (int i = bounds[0] + lane; i < bounds[1]; i += kWarpSize) {
    const auto chosen = static_cast<unsigned>(__popc(a.tile_masks[group * a.capacity + i]));
    atomicAdd(&counts[at(GateFigures::kChosen)], chosen);
    if (!drops) continue;
    const int bin = distance_bin(own - a.tile_blocks[group * a.capacity + i]);
    atomicAdd(&counts[at(GateFigures::kChosenAt) + bin], chosen);
  }
  if (drops && lane < kDistances) {
    atomicAdd(&counts[at(GateFigures::kCandidatesAt) + lane],
              static_cast<unsigned>(candidates_at(a, own, lane) * range.tokens));
  }
  if (lane != 0) return;
  const int size = bounds[1] - bounds[0];
  atomicAdd(&counts[at(GateFigures::kTiles)], 1U);
  atomicAdd(&counts[at(GateFigures::kUnion)], static_cast<unsigned>(size));
  atomicAdd(&counts[at(GateFigures::kExecuted)], static_cast<unsigned>(size * range.tokens));
}

/// parts [groups, blocks, kCounts]
__global__ void __launch_bounds__(kThreads) count_tiles(unsigned* parts, Lists a) {
  SharedMemory shared;
  auto* const counts = shared.take<unsigned>(kCounts);
  const int lane = static_cast<int>(threadIdx.x);
  const int group = static_cast<int>(blockIdx.y);
  if (lane < kCounts) counts[lane] = 0;
  __syncthreads();
  const int first = static_cast<int>(blockIdx.x) * kTilesPerBlock;
  const int end = std::min(first + kTilesPerBlock, a.grid.tile_count());
  for (int tile = first + lane / kWarpSize; tile < end; tile += kWarps) {
    count_tile(a, group, tile, counts);
  }
  __syncthreads();
  if (lane < kCounts) {
    parts[(int64_t{group} * gridDim.x + blockIdx.x) * kCounts + lane] = counts[lane];
  }
}

__global__ void add_counts(float* figures, const unsigned* parts, int blocks) {
  const int figure = static_cast<int>(threadIdx.x);
  const int64_t group = blockIdx.x;
  if (figure >= kCounts) return;
  double sum = 0;
  for (int64_t i = 0; i < blocks; ++i) sum += parts[(group * blocks + i) * kCounts + figure];
  figures[group * GateFigures::kSize + GateFigures::kTiles + figure] += static_cast<float>(sum);
}

/// Tokens at positions from `position` on of a segment.
__device__ int tokens_from(const Stretches& pieces, int segment, int position) {
  int tokens = 0;
  for (int i = pieces.begin_of(segment); i < pieces.size && pieces.segment(i) == segment; ++i) {
    tokens += std::max(0, pieces.end(i) - std::max(position, pieces.first(i)));
  }
  return tokens;
}

__global__ void __launch_bounds__(kThreads) count_blocks(float* counts, Lists a) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int block =
      static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarpSize;
  const int group = static_cast<int>(blockIdx.y);
  if (block >= a.grid.max_blocks) return;
  float* const to = counts + (int64_t{group} * a.grid.max_blocks + block) * 2;
  int tokens = 0;
  int chosen = 0;
  if (block < a.grid.block_count()) {
    const int segment = range_of(a.grid.block_starts, a.grid.segments, block);
    const int number = block - a.grid.block_starts[segment];
    if (number >= a.sink_blocks) {
      // From there on a token has the block as a candidate, and more candidates than it may keep.
      const int own = std::max(number, a.kept + a.sink_blocks) + a.window_blocks;
      tokens = tokens_from(a.grid.pieces, segment, own * a.grid.block);
      const int32_t* const bounds =
          a.block_offsets + int64_t{group} * (a.grid.max_blocks + 1) + block;
      for (int i = bounds[0] + lane; i < bounds[1]; i += kWarpSize) {
        const GridRange tile = find_tile(a.grid, a.block_tiles[group * a.capacity + i]);
        if (a.candidates(tile.position / a.grid.block) <= a.kept) continue;
        chosen += __popc(a.block_masks[group * a.capacity + i]);
      }
    }
  }
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
    chosen += __shfl_xor_sync(kWholeWarp, chosen, bits);
  }
  if (lane != 0) return;
  to[0] = static_cast<float>(tokens);
  to[1] = static_cast<float>(chosen);
}

__global__ void __launch_bounds__(kThreads)
    judge_blocks(float* figures, const float* counts, int blocks) {
  SharedMemory shared;
  auto* const sums = shared.take<unsigned>(3);
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t group = blockIdx.x;
  if (lane < 3) sums[lane] = 0;
  __syncthreads();
  for (int b = lane; b < blocks; b += kThreads) {
    const float tokens = counts[(group * blocks + b) * 2];
    const float chosen = counts[(group * blocks + b) * 2 + 1];
    if (tokens < GateFigures::kFewest) continue;
    atomicAdd(&sums[0], 1U);
    if (chosen == 0) atomicAdd(&sums[1], 1U);
    if (2 * chosen >= tokens) atomicAdd(&sums[2], 1U);
  }
  __syncthreads();
  if (lane >= 3) return;
  figures[group * GateFigures::kSize + GateFigures::kBlocks + lane] +=
      static_cast<float>(sums[lane]);
}

}  // namespace

void measure_gate_lists(Stream& stream, const MeasureGateLists& a) {
  const Lists lists{.tile_offsets = a.lists.tile_offsets.as<int32_t>().data(),
                    .tile_blocks = a.lists.tile_blocks.as<int32_t>().data(),
                    .tile_masks = a.lists.tile_masks.as<uint16_t>().data(),
                    .block_offsets = a.lists.block_offsets.as<int32_t>().data(),
                    .block_tiles = a.lists.block_tiles.as<int32_t>().data(),
                    .block_masks = a.lists.block_masks.as<uint16_t>().data(),
                    .grid = view_of(a.grid),
                    .capacity = a.lists.tile_blocks.shape()[1],
                    .max_tiles = static_cast<int>(a.grid.max_tiles()),
                    .sink_blocks = static_cast<int>(a.rule.sink_blocks),
                    .window_blocks = static_cast<int>(a.rule.window_blocks),
                    .kept = static_cast<int>(a.rule.kept)};
  const auto groups = static_cast<unsigned>(a.lists.tile_offsets.shape()[0]);
  const unsigned blocks = std::max(1U, blocks_for(lists.max_tiles, kTilesPerBlock));
  auto* const parts =
      Workspace(stream, "measure_gate_lists").take<unsigned>(int64_t{groups} * blocks * kCounts);
  launch(stream, count_tiles, dim3(blocks, groups), kThreads, shared_bytes_of<unsigned>(kCounts),
         parts, lists);
  launch(stream, add_counts, dim3(groups), 64, 0, a.figures.as<float>().data(), parts,
         static_cast<int>(blocks));
  launch(stream, count_blocks, dim3(blocks_for(lists.grid.max_blocks, kWarps), groups), kThreads, 0,
         a.counts.as<float>().data(), lists);
}

void measure_gate_blocks(Stream& stream, const MeasureGateBlocks& a) {
  launch(stream, judge_blocks, dim3(static_cast<unsigned>(a.counts.shape()[0])), kThreads,
         shared_bytes_of<unsigned>(3), a.figures.as<float>().data(), a.counts.as<float>().data(),
         static_cast<int>(a.counts.shape()[1]));
}

}  // namespace tessera::gpu
