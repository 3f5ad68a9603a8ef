#include <algorithm>

#include "kernels/core/capability.h"
#include "kernels/grouped_matmul.h"
#include "kernels/grouped_matmul_sm90.cuh"

// grouped_matmul_weight with the instructions of Hopper: the depth is the rows of a group, and
// lines in shared memory are along rows and columns of c, as they are in memory. What lies behind
// the last row of a group is set to 0 in the last step. c is added to where it lies: 4 bytes per
// number go there, and none come.

namespace tessera::gpu {
namespace sm90 {
namespace {

struct WeightTile {
  int group;
  int row;     ///< of c[group]
  int column;  ///< of c[group]
  int first;   ///< row of a and b
  int depth;   ///< how many; 0: nothing to do

  __device__ int steps() const { return (depth + kDepth - 1) / kDepth; }
};

struct WeightProblem {
  float* c;
  RowGroups groups;
  int row_tiles;
  int column_tiles;
  int n;
  int k;

  __device__ int tiles() const { return groups.count * row_tiles * column_tiles; }
  /// Tiles of a group are neighbours, so that they find its rows in the L2 cache.
  __device__ WeightTile tile(int index) const {
    const int group = index / (row_tiles * column_tiles);
    const int first = groups.edge(group);
    return {group, index % row_tiles * kRows, index / row_tiles % column_tiles * kColumns, first,
            std::max(0, groups.edge(group + 1) - first)};
  }
};

constexpr int kBoxesOfA = kRows / kLine;
constexpr int kBoxes = kBoxesOfA + kColumns / kLine;

/// One lane.
__device__ void copy_weight_tiles(const WeightProblem& p, const Ring& ring,
                                  const CUtensorMap& a_map, const CUtensorMap& b_map) {
  int step = 0;  // of all tiles
  for (int index = static_cast<int>(blockIdx.x); index < p.tiles();
       index += static_cast<int>(gridDim.x)) {
    const WeightTile tile = p.tile(index);
    for (int i = 0; i < tile.steps(); ++i, ++step) {
      uint64_t* const full = ring.full + step % kStages;
      wait_for_phase_or_stop(ring.empty + step % kStages, Ring::parity(step) ^ 1);
      arrive_and_expect(full, kStageBytes);
      const int row = tile.first + i * kDepth;
      for (int box = 0; box < kBoxes; ++box) {
        const bool of_a = box < kBoxesOfA;
        const int at = of_a ? tile.row + box * kLine : tile.column + (box - kBoxesOfA) * kLine;
        copy_box(ring.a(step) + box * kBoxBytes, of_a ? &a_map : &b_map, full, at, row, 0);
      }
    }
  }
  wait_for_last(ring, step);
}

/// Zeros in the lines of a stage from `first` on, by all who multiply: products see them.
__device__ void clear_lines(unsigned char* stage, int first) {
  constexpr int kLanes = 2 * kGroupThreads;
  constexpr int kPacks = 128 / 16;  // of a line
  const int packs = (kDepth - first) * kPacks;
  for (int box = 0; box < kBoxes; ++box) {
    unsigned char* const lines = stage + box * kBoxBytes + first * 128;
    for (int i = static_cast<int>(threadIdx.x); i < packs; i += kLanes) {
      *reinterpret_cast<uint4*>(lines + i * 16) = make_uint4(0, 0, 0, 0);
    }
  }
  show_to_units();
  sync_named(1, kLanes);
}

__device__ __forceinline__ void add_sums(const Sums& sums, const WeightProblem& p,
                                         const WeightTile& tile) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int row = tile.row + static_cast<int>(threadIdx.x) / kWarpSize * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < kColumns / 2; i += 2) {
    const int r = row + i / 2 % 2 * 8;
    const int c = tile.column + i / 4 * 8 + lane % 4 * 2;
    if (r >= p.n || c >= p.k) continue;
    add_to(p.c + (int64_t{tile.group} * p.n + r) * p.k + c, sums[i], sums[i + 1]);
  }
}

/// Two warp groups, each with 64 rows of c; see multiply_tiles.
__device__ void multiply_weight_tiles(const WeightProblem& p, const Ring& ring) {
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads;
  int step = 0;
  for (int index = static_cast<int>(blockIdx.x); index < p.tiles();
       index += static_cast<int>(gridDim.x)) {
    const WeightTile tile = p.tile(index);
    if (tile.depth == 0) continue;
    Sums sums = {};
    const int end = step + tile.steps();
    for (const int first = step; step < end; ++step) {
      wait_for_phase(ring.full + step % kStages, Ring::parity(step));
      const int rows = tile.depth - (step - first) * kDepth;
      if (rows < kDepth) clear_lines(ring.a(step), rows);
      start_step<true, true>(sums, matrix_descriptor(ring.a(step) + group * kBoxBytes, kBoxBytes),
                             matrix_descriptor(ring.b(step), kBoxBytes));
      wait_for_products<1>();
      if (step > first) give_back(ring, step - 1);
    }
    wait_for_products<0>();
    hold_sums(sums);
    give_back(ring, step - 1);
    add_sums(sums, p, tile);
  }
}

__global__ void __launch_bounds__(kThreads, 1)
    multiply_weights(WeightProblem p, const __grid_constant__ CUtensorMap a_map,
                     const __grid_constant__ CUtensorMap b_map) {
  SharedMemory shared;
  const Ring ring = Ring::start(shared);
  if (threadIdx.x < 2 * kGroupThreads) {
    take_registers<kMultiplyingRegisters>();
    multiply_weight_tiles(p, ring);
    return;
  }
  give_registers<kCopyingRegisters>();
  if (threadIdx.x == 2 * kGroupThreads) copy_weight_tiles(p, ring, a_map, b_map);
}

void start(Stream& stream, const GroupedMatmulWeight& a) {
  constexpr const char* kWho = "grouped_matmul_weight_sm90";
  const int64_t rows = a.a.shape()[0];
  const int64_t n = a.a.shape()[1];
  const int64_t k = a.b.shape()[1];
  const int64_t groups = a.offsets.elements() - 1;
  CHECK(a.a.dtype() == DType::kBF16 && k % 8 == 0 && n % 8 == 0, kWho, ": a is ",
        name_of(a.a.dtype()), ", k is ", k, ", n is ", n, ", expected bf16 and multiples of 8");
  if (rows == 0 || n == 0 || k == 0 || groups == 0) return;
  const WeightProblem problem{
      .c = a.c.as<float>().data(),
      .groups = {a.offsets.as<int32_t>().data(), static_cast<int>(groups), static_cast<int>(rows)},
      .row_tiles = static_cast<int>((n + kRows - 1) / kRows),
      .column_tiles = static_cast<int>((k + kColumns - 1) / kColumns),
      .n = static_cast<int>(n),
      .k = static_cast<int>(k)};
  const int64_t tiles = groups * problem.row_tiles * problem.column_tiles;
  const auto blocks = static_cast<int64_t>(multiprocessors(stream.device().index));
  launch(stream, multiply_weights, dim3(static_cast<unsigned>(std::min(tiles, blocks))), kThreads,
         kSharedBytes, problem, tensor_map(a.a, {n, rows, 1}, {kLine, kDepth, 1}, kWho),
         tensor_map(a.b, {k, rows, 1}, {kLine, kDepth, 1}, kWho));
}

}  // namespace
}  // namespace sm90

bool sm90_takes(const Stream& stream, const GroupedMatmulWeight& a) {
  const auto whole = [](const ConstTensorView& x) {
    return reinterpret_cast<uintptr_t>(x.data()) % 16 == 0 && x.shape()[-1] % 8 == 0;
  };
  return kGroupedMatmulBySm90 && a.a.dtype() == DType::kBF16 && whole(a.a) && whole(a.b) &&
         whole(a.c) && compute_capability(stream.device().index) == 90;
}

void grouped_matmul_weight_sm90(Stream& stream, const GroupedMatmulWeight& a) {
  sm90::start(stream, a);
}

}  // namespace tessera::gpu
