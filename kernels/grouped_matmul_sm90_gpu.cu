#include <algorithm>

#include "kernels/core/capability.h"
#include "kernels/grouped_matmul.h"
#include "kernels/grouped_matmul_sm90.cuh"

// grouped_matmul with the instructions of Hopper. What the memory unit finds beyond a tensor is
// zeros; rows of the next group and columns beyond n are multiplied and not written.

namespace tessera::gpu {
namespace sm90 {
namespace {

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
      wait_for_phase_or_stop(ring.empty + step % kStages, Ring::parity(step) ^ 1);
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
  if (threadIdx.x % kWarpSize == 0) wait_for_last(ring, step);
}

/// Four fragments of 8 columns, a word of each in the four lanes of a row: lane t gets fragment t,
/// its words in their order.
__device__ __forceinline__ void gather_fragments(uint32_t (&words)[4]) {
  const auto lane = static_cast<int>(threadIdx.x);
  const auto swap = [&](int bit, int low, int high) {
    const bool upper = (lane & bit) != 0;
    const uint32_t other = __shfl_xor_sync(kWholeWarp, upper ? words[low] : words[high], bit);
    (upper ? words[low] : words[high]) = other;
  };
  swap(1, 0, 1);
  swap(1, 2, 3);
  swap(2, 0, 2);
  swap(2, 1, 3);
}

/// bf16: 16 bytes of a row per lane.
__device__ __forceinline__ void write_rounded(const Sums& sums, const Problem& p,
                                              const RowTile& rows, int column) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int row = static_cast<int>(threadIdx.x) / kWarpSize * 16 + lane / 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = row + 8 * half;
    BF16* const to = static_cast<BF16*>(p.c) + int64_t{rows.first + r} * p.n;
#pragma unroll
    for (int first = 0; first < kColumns / 8; first += 4) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* const pair = sums + 4 * (first + i) + 2 * half;
        words[i] = pack_bf16(pair[0], pair[1]);
      }
      gather_fragments(words);
      const int c = column + 8 * (first + lane % 4);
      if (r >= rows.rows || c >= p.n) continue;
      store_words(to + c, words[0], words[1], words[2], words[3]);
    }
  }
}

__device__ __forceinline__ void write_sums(const Sums& sums, const Problem& p, const RowTile& rows,
                                           int column) {
  if (p.c_is_bf16) return write_rounded(sums, p, rows, column);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int row = static_cast<int>(threadIdx.x) / kWarpSize * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < kColumns / 2; i += 2) {
    const int r = row + i / 2 % 2 * 8;
    const int c = column + i / 4 * 8 + lane % 4 * 2;
    if (r >= rows.rows || c >= p.n) continue;
    const int64_t at = int64_t{rows.first + r} * p.n + c;
    *reinterpret_cast<float2*>(static_cast<float*>(p.c) + at) = {sums[i], sums[i + 1]};
  }
}

/// Two warp groups, each with its 64 rows. A stage is given back when the products of the next one
/// have been started and its own are over.
template <bool kTransposed>
__device__ void multiply_tiles(const Problem& p, const Ring& ring) {
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads;
  int step = 0;
  for (int tile = static_cast<int>(blockIdx.x); tile < p.tiles;
       tile += static_cast<int>(gridDim.x)) {
    const RowTile rows = p.rows(tile);
    if (rows.rows == 0) continue;
    Sums sums = {};
    const int end = step + p.steps();
    for (const int first = step; step < end; ++step) {
      wait_for_phase(ring.full + step % kStages, Ring::parity(step));
      start_step<false, !kTransposed>(
          sums, matrix_descriptor(ring.a(step) + group * (kABytes / 2), 16),
          matrix_descriptor(ring.b(step), kTransposed ? 16 : kBoxBytes));
      wait_for_products<1>();
      if (step > first) give_back(ring, step - 1);
    }
    wait_for_products<0>();
    hold_sums(sums);
    if (p.steps() > 0) give_back(ring, step - 1);
    write_sums(sums, p, rows, p.order.column(tile) * kColumns);
  }
}

template <bool kTransposed>
__global__ void __launch_bounds__(kThreads, 1)
    multiply_groups(Problem p, const __grid_constant__ CUtensorMap a_map,
                    const __grid_constant__ CUtensorMap b_map) {
  SharedMemory shared;
  const Ring ring = Ring::start(shared);
  if (threadIdx.x < 2 * kGroupThreads) {
    take_registers<kMultiplyingRegisters>();
    multiply_tiles<kTransposed>(p, ring);
    return;
  }
  give_registers<kCopyingRegisters>();
  if (threadIdx.x < 2 * kGroupThreads + kWarpSize) {
    copy_tiles<kTransposed>(p, ring, a_map, b_map);
  }
}

void start(Stream& stream, const GroupedMatmul& a) {
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

}  // namespace
}  // namespace sm90

bool sm90_takes(const Stream& stream, const GroupedMatmul& a) {
  const auto whole = [](const ConstTensorView& x) {
    return reinterpret_cast<uintptr_t>(x.data()) % 16 == 0 && x.shape()[-1] % 8 == 0;
  };
  return kGroupedMatmulBySm90 && a.a.dtype() == DType::kBF16 && a.a.shape()[1] > 0 && whole(a.a) &&
         whole(a.b) && whole(a.c) && compute_capability(stream.device().index) == 90;
}

void grouped_matmul_sm90(Stream& stream, const GroupedMatmul& a) {
  sm90::start(stream, a);
}

}  // namespace tessera::gpu
