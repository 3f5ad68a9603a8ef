#include <algorithm>

#include "kernels/core/block_scan.cuh"
#include "kernels/core/device_check.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/segment_grid.cuh"

// One block scans the pieces, of which there are at most some thousands; then a lane per token
// finds its piece. So no token is written outside of the tensors, whatever the numbers are. The
// host has them too, and no kernel waits for it: what is wrong stops the device (device_check.cuh).

namespace tessera::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kScanThreads = 1024;

struct Numbering {
  int32_t* positions;     // [tokens]
  int32_t* tile_starts;   // [pieces + 1]
  int32_t* block_starts;  // [pieces + 1]; null: not to be filled
  Stretches pieces;
  int tokens;
  int block;
};

__device__ int parts(int first, int end, int length) {
  return end > first ? (end + length - 1) / length - first / length : 0;
}

/// Fills tile_starts and block_starts: one block.
__global__ void __launch_bounds__(kScanThreads) number_pieces(Numbering a) {
  SharedMemory shared;
  int* const scratch = shared.take<int>(2 * kWarpSize);
  device_check(a.pieces.starts[0] == 0, "segment grid: starts[0] is not 0");
  device_check(a.pieces.starts[a.pieces.size] == a.tokens,
               "segment grid: the last of starts is not tokens");
  int tiles = 0;
  int blocks = 0;
  for (int base = 0; base < a.pieces.size; base += kScanThreads) {
    const int i = base + static_cast<int>(threadIdx.x);
    const bool valid = i < a.pieces.size;
    const int first = valid ? a.pieces.first(i) : 0;
    const int end = valid ? a.pieces.end(i) : 0;
    device_check(!valid || end >= first, "segment grid: starts does not ascend");
    int all;
    const int until = block_prefix_sum(parts(first, end, SegmentGrid::kTile), scratch, all);
    if (valid) a.tile_starts[i + 1] = tiles + until;
    tiles += all;
    if (a.block_starts != nullptr) {
      const int until_block =
          block_prefix_sum(parts(first, end, a.block), scratch + kWarpSize, all);
      if (valid) a.block_starts[i + 1] = blocks + until_block;
      blocks += all;
    }
    __syncthreads();  // scratch is used again
  }
  if (threadIdx.x > 0) return;
  a.tile_starts[0] = 0;
  if (a.block_starts != nullptr) a.block_starts[0] = 0;
}

__global__ void __launch_bounds__(kThreads) number_tokens(Numbering a) {
  const int token = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (token >= a.tokens) return;
  const int piece = range_of(a.pieces.starts, a.pieces.size, token);
  a.positions[token] = token - a.pieces.origin(piece);
}

void number(Stream& stream, const Numbering& a) {
  launch(stream, number_pieces, dim3(1), kScanThreads, shared_bytes_of<int>(2 * kWarpSize), a);
  launch(stream, number_tokens, dim3(blocks_for(a.tokens, kThreads)), kThreads, 0, a);
}

struct Sharded {
  Stretches pieces;
  Stretches runs;
  const int32_t* block_starts;
  int segments;
  int block;
  int key_rows;
};

/// What cpu::check_stretches checks of stretch i.
__device__ void check_stretch(const Sharded& a, const Stretches& x, int i) {
  const int segment = x.segment(i);
  device_check(segment >= (i > 0 ? x.segment(i - 1) : 0) && segment < a.segments,
               "build_sharded_grid: segments of pieces or runs do not ascend");
  const int count = x.count(i);
  device_check(count >= 0, "build_sharded_grid: run_starts does not ascend");
  if (count <= 0) return;
  int before = i - 1;
  while (before >= 0 && x.segment(before) == segment && x.count(before) == 0) --before;
  const int least = before >= 0 && x.segment(before) == segment ? x.end(before) : 0;
  device_check(x.first(i) >= least, "build_sharded_grid: pieces or runs of a segment overlap");
  const int room = (a.block_starts[segment + 1] - a.block_starts[segment]) * a.block;
  device_check(x.end(i) <= room,
               "build_sharded_grid: a piece or run ends behind the blocks of its segment");
}

__global__ void __launch_bounds__(kThreads) check_sharded(Sharded a) {
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i == 0) {
    device_check(a.runs.starts[0] == 0 && a.block_starts[0] == 0,
                 "build_sharded_grid: run_starts[0] or block_starts[0] is not 0");
    device_check(a.runs.starts[a.runs.size] <= a.key_rows,
                 "build_sharded_grid: the last of run_starts is above key_rows");
  }
  if (i < a.segments) {
    device_check(a.block_starts[i + 1] >= a.block_starts[i],
                 "build_sharded_grid: block_starts does not ascend");
  }
  if (i < a.pieces.size) check_stretch(a, a.pieces, i);
  if (i < a.runs.size) check_stretch(a, a.runs, i);
}

}  // namespace

void build_segment_grid(Stream& stream, const BuildSegmentGrid& a) {
  number(stream, {.positions = a.positions.as<int32_t>().data(),
                  .tile_starts = a.tile_starts.as<int32_t>().data(),
                  .block_starts = a.block_starts.as<int32_t>().data(),
                  .pieces = {a.starts.as<int32_t>().data(), nullptr, nullptr,
                             static_cast<int>(a.starts.shape()[0]) - 1},
                  .tokens = static_cast<int>(a.positions.elements()),
                  .block = static_cast<int>(a.block)});
}

void build_sharded_grid(Stream& stream, const BuildShardedGrid& a) {
  const auto stretches = [](const ConstTensorView& starts, const ConstTensorView& firsts,
                            const ConstTensorView& segments) {
    return Stretches{starts.as<int32_t>().data(), firsts.as<int32_t>().data(),
                     segments.as<int32_t>().data(), static_cast<int>(starts.shape()[0]) - 1};
  };
  const Sharded grid{.pieces = stretches(a.starts, a.firsts, a.piece_segments),
                     .runs = stretches(a.run_starts, a.run_firsts, a.run_segments),
                     .block_starts = a.block_starts.as<int32_t>().data(),
                     .segments = static_cast<int>(a.block_starts.shape()[0]) - 1,
                     .block = static_cast<int>(a.block),
                     .key_rows = static_cast<int>(a.key_rows)};
  const int64_t most = std::max({grid.segments, grid.pieces.size, grid.runs.size});
  launch(stream, check_sharded, dim3(blocks_for(most, kThreads)), kThreads, 0, grid);
  number(stream, {.positions = a.positions.as<int32_t>().data(),
                  .tile_starts = a.tile_starts.as<int32_t>().data(),
                  .block_starts = nullptr,
                  .pieces = grid.pieces,
                  .tokens = static_cast<int>(a.positions.elements()),
                  .block = grid.block});
}

}  // namespace tessera::gpu
