#include <algorithm>

#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/ptx_sm90.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/core/tensor_map.cuh"
#include "kernels/core/wgmma_sm90.cuh"
#include "kernels/group_tiles.cuh"
#include "kernels/grouped_matmul.h"

// grouped_matmul with the instructions of Hopper. A block per multiprocessor takes tile after tile
// of 128 x 256: a warp has the memory unit copy steps of 64 of the depth into a ring of four
// stages, two warp groups multiply 64 x 256 each from there. The copying runs ahead over the ends
// of tiles, so that it goes on while a tile is written. What the memory unit finds beyond a tensor
// is zeros; rows of the next group and columns beyond n are multiplied and not written. A step
// moves 48 KiB for 2 x 128 x 256 x 64 operations: 85 operations per byte of the L2 cache.

namespace tessera::gpu {
namespace {

constexpr int kRows = 128;
constexpr int kColumns = 256;
constexpr int kDepth = 64;  // 128 bytes of bf16: a line of the swizzle
constexpr int kStages = 4;
constexpr int kGroupThreads = 128;
constexpr int kThreads = 3 * kGroupThreads;  // two groups multiply, a warp of the third copies
constexpr int kMultiplyingWarps = 2 * kGroupThreads / kWarpSize;
constexpr int kLine = 64;                           // elements
constexpr uint32_t kBoxBytes = kDepth * kLine * 2;  // of 64 columns, by depth
constexpr uint32_t kABytes = kRows * kDepth * 2;
constexpr uint32_t kBBytes = kColumns * kDepth * 2;
constexpr uint32_t kStageBytes = kABytes + kBBytes;
constexpr uint32_t kAligned = 1024;
constexpr int64_t kSharedBytes =
    shared_bytes_of<uint64_t>(2 * kStages) + kAligned + kStages * int64_t{kStageBytes};

struct Problem {
  void* c;
  RowGroups groups;
  TileOrder order;
  int tiles;  // at most
  int n;
  int k;
  bool c_is_bf16;

  __device__ int steps() const { return (k + kDepth - 1) / kDepth; }
  __device__ RowTile rows(int tile) const { return find_row_tile(groups, order.row(tile), kRows); }
};

/// The ring: `full` when a stage's bytes are there, `empty` when all multiplying warps are done.
struct Ring {
  uint64_t* full;
  uint64_t* empty;
  unsigned char* stages;

  __device__ unsigned char* a(int step) const { return stages + step % kStages * kStageBytes; }
  __device__ unsigned char* b(int step) const { return a(step) + kABytes; }
  __device__ static uint32_t parity(int step) { return static_cast<uint32_t>(step / kStages) & 1; }
};

/// One warp: all of it looks for tiles, its first lane starts the copies.
template <bool kTransposed>
__device__ void copy_tiles(const Problem& p, const Ring& ring, const CUtensorMap& a_map,
                           const CUtensorMap& b_map) {
  int step = 0;  // of all tiles
  for (int tile = static_cast<int>(blockIdx.x); tile < p.tiles;
       tile += static_cast<int>(gridDim.x)) {
    const RowTile rows = p.rows(tile);
    if (rows.rows == 0) continue;
    const int column = p.order.column(tile) * kColumns;
    for (int d = 0; d < p.steps() * kDepth; d += kDepth, ++step) {
      if (threadIdx.x % kWarpSize != 0) continue;
      uint64_t* const full = ring.full + step % kStages;
      wait_for_phase(ring.empty + step % kStages, Ring::parity(step) ^ 1);
      arrive_and_expect(full, kStageBytes);
      copy_box(ring.a(step), &a_map, full, d, rows.first, 0);
      if constexpr (kTransposed) {
        copy_box(ring.b(step), &b_map, full, d, column, rows.group);
      } else {
        for (int i = 0; i < kColumns / kLine; ++i) {
          copy_box(ring.b(step) + i * kBoxBytes, &b_map, full, column + i * kLine, d, rows.group);
        }
      }
    }
  }
}

using Sums = float[kColumns / 2];  // of a lane: 64 x 256 by 128 lanes

__device__ void write_sums(const Sums& sums, const Problem& p, const RowTile& rows, int column) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int row = static_cast<int>(threadIdx.x) / kWarpSize * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < kColumns / 2; i += 2) {
    const int r = row + i / 2 % 2 * 8;
    const int c = column + i / 4 * 8 + lane % 4 * 2;
    if (r >= rows.rows || c >= p.n) continue;
    const int64_t at = int64_t{rows.first + r} * p.n + c;
    if (p.c_is_bf16) {
      const uint32_t low = from_float<BF16>(sums[i]).bits;
      const uint32_t high = from_float<BF16>(sums[i + 1]).bits;
      *reinterpret_cast<uint32_t*>(static_cast<BF16*>(p.c) + at) = low | high << 16;
    } else {
      *reinterpret_cast<float2*>(static_cast<float*>(p.c) + at) = {sums[i], sums[i + 1]};
    }
  }
}

/// Two warp groups, each with its 64 rows. A stage is given back when the products of the next one
/// have been started and its own are over.
template <bool kTransposed>
__device__ void multiply_tiles(const Problem& p, const Ring& ring) {
  constexpr int kProducts = kDepth / 16;
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads;
  const auto give_back = [&](int step) {
    if (threadIdx.x % kWarpSize == 0) arrive(ring.empty + step % kStages);
  };
  int step = 0;
  for (int tile = static_cast<int>(blockIdx.x); tile < p.tiles;
       tile += static_cast<int>(gridDim.x)) {
    const RowTile rows = p.rows(tile);
    if (rows.rows == 0) continue;
    Sums sums = {};
    const int end = step + p.steps();
    for (const int first = step; step < end; ++step) {
      wait_for_phase(ring.full + step % kStages, Ring::parity(step));
      const uint64_t a = matrix_descriptor(ring.a(step) + group * (kABytes / 2), 16);
      const uint64_t b = matrix_descriptor(ring.b(step), kTransposed ? 16 : kBoxBytes);
      hold_sums(sums);
      open_products();
#pragma unroll
      for (int i = 0; i < kProducts; ++i) {
        // 16 of the depth on: 32 bytes along lines, or 16 lines.
        constexpr int kNext = kTransposed ? 32 / 16 : 16 * 128 / 16;
        multiply_64<kColumns, false, !kTransposed>(sums, a + 2 * i, b + kNext * i, true);
      }
      close_products();
      hold_sums(sums);
      wait_for_products<1>();
      if (step > first) give_back(step - 1);
    }
    wait_for_products<0>();
    hold_sums(sums);
    if (p.steps() > 0) give_back(step - 1);
    write_sums(sums, p, rows, p.order.column(tile) * kColumns);
  }
}

template <bool kTransposed>
__global__ void __launch_bounds__(kThreads, 1)
    multiply_groups(Problem p, const __grid_constant__ CUtensorMap a_map,
                    const __grid_constant__ CUtensorMap b_map) {
  SharedMemory shared;
  uint64_t* const barriers = shared.take<uint64_t>(2 * kStages);
  unsigned char* const rest =
      shared.take<unsigned char>(static_cast<int>(kAligned + kStages * kStageBytes));
  const uint32_t beyond = address_in_shared(rest) % kAligned;
  const Ring ring{barriers, barriers + kStages, rest + (kAligned - beyond) % kAligned};
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      start_barrier(ring.full + i, 1);
      start_barrier(ring.empty + i, kMultiplyingWarps);
    }
    show_barriers();
  }
  __syncthreads();
  if (threadIdx.x < 2 * kGroupThreads) {
    multiply_tiles<kTransposed>(p, ring);
  } else if (threadIdx.x < 2 * kGroupThreads + kWarpSize) {
    copy_tiles<kTransposed>(p, ring, a_map, b_map);
  }
}

int multiprocessors(int device) {
  int count = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

}  // namespace

void grouped_matmul_sm90(Stream& stream, const GroupedMatmul& a) {
  constexpr const char* kWho = "grouped_matmul_sm90";
  const int64_t rows = a.a.shape()[0];
  const int64_t k = a.a.shape()[1];
  const int64_t n = a.c.shape()[1];
  const int64_t groups = a.offsets.elements() - 1;
  CHECK(a.a.dtype() == DType::kBF16 && k % 8 == 0 && n % 8 == 0, "grouped_matmul_sm90: a is ",
        name_of(a.a.dtype()), ", k is ", k, ", n is ", n, ", expected bf16 and multiples of 8");
  if (rows == 0 || n == 0 || groups == 0) return;
  CHECK(k > 0, "grouped_matmul_sm90: k is 0, expected at least 8");
  const int64_t column_tiles = (n + kColumns - 1) / kColumns;
  const unsigned tiles = TileOrder::blocks(most_row_tiles(rows, groups, kRows), column_tiles);
  const Problem problem{
      .c = a.c.data(),
      .groups = {a.offsets.as<int32_t>().data(), static_cast<int>(groups), static_cast<int>(rows)},
      .order = {static_cast<int>(column_tiles)},
      .tiles = static_cast<int>(tiles),
      .n = static_cast<int>(n),
      .k = static_cast<int>(k),
      .c_is_bf16 = a.c.dtype() == DType::kBF16};
  const CUtensorMap a_map = tensor_map(a.a, {k, rows, 1}, {kLine, kRows, 1}, kWho);
  const CUtensorMap b_map = a.transpose_b
                                ? tensor_map(a.b, {k, n, groups}, {kLine, kColumns, 1}, kWho)
                                : tensor_map(a.b, {n, k, groups}, {kLine, kDepth, 1}, kWho);
  const auto blocks = static_cast<unsigned>(multiprocessors(stream.device().index));
  launch(stream, a.transpose_b ? multiply_groups<true> : multiply_groups<false>,
         dim3(std::min(tiles, blocks)), kThreads, kSharedBytes, problem, a_map, b_map);
}

}  // namespace tessera::gpu
