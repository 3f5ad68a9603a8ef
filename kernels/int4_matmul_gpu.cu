#include <algorithm>

#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/ptx.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/int4_matmul.h"

// Of few rows memory sets the pace: 4.5 bits per weight. A block of threads has 16 columns of c,
// that is rows of w, and eight warps share their runs of 64 numbers. Weights are the left operand
// of mma.m16n8k16 and up to 16 rows of a the right one, straight from memory: which numbers of a
// run are multiplied with each other does not matter as long as both operands agree, so lane 4 r +
// c takes numbers 8 c .. 8 c + 7 and 32 + 8 c .. of column r, 8 bytes, and the same numbers of row
// r of a, twice 16 bytes. Codes are whole numbers that bf16 holds exactly; sums of a run are scaled
// in f32. The sums of a, which the offsets multiply, come from a product with ones. The warps' sums
// are added in their order, so the bits depend on the shapes alone.

namespace tessera::gpu {
namespace {

constexpr int kRun = static_cast<int>(Int4Weights::kRun);
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kColumns = 16;  // of a block
constexpr int kRows = 8;      // of a tile: columns of an mma's result
constexpr int kMostTiles = 2;

template <class T, class C>
struct Few {
  C* c;                    // [rows, n]
  const T* a;              // [rows, k]
  const uint8_t* codes;    // [groups, n, k / 2]
  const uint32_t* scales;  // [groups, n, k / 64]: pairs of bf16
  const int32_t* offsets;  // [groups + 1], or null
  int rows;
  int n;
  int k;
  bool accumulate;
};

/// The rows of a block's group: none where offsets are wrong.
struct RowRange {
  int begin;
  int end;
};
template <class T, class C>
__device__ RowRange rows_of(const Few<T, C>& a) {
  if (a.offsets == nullptr) return {0, a.rows};
  const int begin = a.offsets[blockIdx.y];
  const int end = a.offsets[blockIdx.y + 1];
  return begin >= 0 && end <= a.rows ? RowRange{begin, end} : RowRange{0, 0};
}

/// Two codes, 16 bits apart in the lower half of each 16, less 8: as bf16, exactly. 0x43 and a code
/// in the lowest bits of the fraction are 128 + q.
__device__ __forceinline__ uint32_t codes_of(uint32_t word) {
  constexpr uint32_t kOne = 0x3F803F80;
  constexpr uint32_t kLess136 = 0xC308C308;
  return multiply_add_bf16((word & 0x000F000F) | 0x43004300, kOne, kLess136);
}

__device__ __forceinline__ float low_half(uint32_t word) {
  return __uint_as_float(word << 16);
}
__device__ __forceinline__ float high_half(uint32_t word) {
  return __uint_as_float(word & 0xFFFF0000);
}

/// A lane's part of a run: of two columns, 8 apart, and of a row of each tile.
template <int kTiles>
struct Operands {
  uint2 codes[2];
  uint32_t scales[2];
  uint4 low[kTiles];   // numbers 8 c .. 8 c + 7 of the row
  uint4 high[kTiles];  // those 32 further on
};

template <int kTiles, class C>
__device__ __forceinline__ Operands<kTiles> load_run(const Few<BF16, C>& a, int64_t column,
                                                     int first_row, int end, int run) {
  const int r = static_cast<int>(threadIdx.x) % kWarpSize / 4;
  const int c = static_cast<int>(threadIdx.x) % 4;
  const int column_of_group = static_cast<int>(blockIdx.x) * kColumns + r;
  Operands<kTiles> to;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool there = column_of_group + 8 * half < a.n;
    const int64_t row = column + 8 * half;
    to.codes[half] =
        there
            ? *reinterpret_cast<const uint2*>(a.codes + row * (a.k / 2) + run * (kRun / 2) + 8 * c)
            : make_uint2(0, 0);
    to.scales[half] = there ? a.scales[row * (a.k / kRun) + run] : 0;
  }
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const int row = first_row + tile * kRows + r;
    const uint4* const from = reinterpret_cast<const uint4*>(a.a + int64_t{row} * a.k + run * kRun);
    to.low[tile] = row < end ? from[c] : make_uint4(0, 0, 0, 0);
    to.high[tile] = row < end ? from[4 + c] : make_uint4(0, 0, 0, 0);
  }
  return to;
}

/// Adds the products of a run to `sums`, as mma has its results: columns of c r and r + 8, rows
/// 2 c and 2 c + 1 of each tile.
template <int kTiles>
__device__ __forceinline__ void add_run(float (&sums)[kTiles][4], const Operands<kTiles>& x) {
  constexpr uint32_t kOnes[4] = {0x3F803F80, 0x3F803F80, 0x3F803F80, 0x3F803F80};
  float products[kTiles][4] = {};
  float rows[kTiles][4] = {};
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const int shift = step % 2 == 0 ? 0 : 8;
    uint32_t weights[4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t word = (step < 2 ? x.codes[half].x : x.codes[half].y) >> shift;
      weights[half] = codes_of(word);           // numbers 2 step, 2 step + 1
      weights[2 + half] = codes_of(word >> 4);  // those 32 further on
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint32_t low = step == 0   ? x.low[tile].x
                           : step == 1 ? x.low[tile].y
                           : step == 2 ? x.low[tile].z
                                       : x.low[tile].w;
      const uint32_t high = step == 0   ? x.high[tile].x
                            : step == 1 ? x.high[tile].y
                            : step == 2 ? x.high[tile].z
                                        : x.high[tile].w;
      multiply_bf16(products[tile], weights, low, high);
      multiply_bf16(rows[tile], kOnes, low, high);
    }
  }
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t pair = x.scales[i / 2];
      sums[tile][i] += low_half(pair) * products[tile][i] + high_half(pair) * rows[tile][i];
    }
  }
}

/// Adds up the warps' sums and writes rows [first_row, end) of the block's columns.
template <int kTiles, class T, class C>
__device__ void write_sums(const Few<T, C>& a, const float (&sums)[kTiles][4], float* shared,
                           int first_row, int end) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int r = static_cast<int>(threadIdx.x) % kWarpSize / 4;
  const int c = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = tile * kRows + 2 * c + i % 2;
      shared[(warp * kTiles * kRows + row) * kColumns + r + i / 2 * 8] = sums[tile][i];
    }
  }
  __syncthreads();
  for (int at = static_cast<int>(threadIdx.x); at < kTiles * kRows * kColumns; at += kThreads) {
    const int row = first_row + at / kColumns;
    const int column = static_cast<int>(blockIdx.x) * kColumns + at % kColumns;
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += shared[w * kTiles * kRows * kColumns + at];
    if (row >= end || column >= a.n) continue;
    C& to = a.c[int64_t{row} * a.n + column];
    to = from_float<C>(a.accumulate ? to_float(to) + sum : sum);
  }
  __syncthreads();  // shared is used again
}

template <int kTiles, class C>
__global__ void __launch_bounds__(kThreads) multiply_few(Few<BF16, C> a) {
  SharedMemory memory;
  float* const shared = memory.take<float>(kWarps * kTiles * kRows * kColumns);
  const RowRange rows = rows_of(a);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int r = static_cast<int>(threadIdx.x) % kWarpSize / 4;
  const int64_t column =
      int64_t{blockIdx.y} * a.n + static_cast<int64_t>(blockIdx.x) * kColumns + r;
  for (int first = rows.begin; first < rows.end; first += kTiles * kRows) {
    float sums[kTiles][4] = {};
#pragma unroll 4
    for (int run = warp; run < a.k / kRun; run += kWarps) {
      add_run<kTiles>(sums, load_run<kTiles>(a, column, first, rows.end, run));
    }
    write_sums<kTiles>(a, sums, shared, first, rows.end);
  }
}

/// In f32, for tests and small models: a warp per column and row, a lane every 32nd byte.
template <class C>
__global__ void __launch_bounds__(kThreads) multiply_f32(Few<float, C> a) {
  const int column =
      static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  if (column >= a.n) return;
  const RowRange rows = rows_of(a);
  const int64_t place = int64_t{blockIdx.y} * a.n + column;
  for (int row = rows.begin; row < rows.end; ++row) {
    float sum = 0;
    for (int run = 0; run < a.k / kRun; ++run) {
      const uint32_t pair = a.scales[place * (a.k / kRun) + run];
      const int codes = a.codes[place * (a.k / 2) + run * (kRun / 2) + lane];
      const float* const x = a.a + int64_t{row} * a.k + run * kRun + int4_number(lane);
      const float low = low_half(pair) * static_cast<float>((codes & 15) - 8) + high_half(pair);
      const float high = low_half(pair) * static_cast<float>((codes >> 4) - 8) + high_half(pair);
      sum += low * x[0] + high * x[kRun / 2];
    }
    sum = warp_sum(sum);
    C& to = a.c[int64_t{row} * a.n + column];
    if (lane == 0) to = from_float<C>(a.accumulate ? to_float(to) + sum : sum);
  }
}

template <class T, class C>
Few<T, C> arguments_of(const Int4Matmul& a) {
  return {.c = a.c.as<C>().data(),
          .a = a.a.as<T>().data(),
          .codes = a.w.codes.as<uint8_t>().data(),
          .scales = static_cast<const uint32_t*>(a.w.scales.data()),
          .offsets = a.offsets.empty() ? nullptr : a.offsets.as<int32_t>().data(),
          .rows = static_cast<int>(a.a.shape()[0]),
          .n = static_cast<int>(a.w.n()),
          .k = static_cast<int>(a.w.k()),
          .accumulate = a.accumulate};
}

template <int kTiles, class C>
void run_tiles(Stream& stream, const Int4Matmul& a) {
  launch(stream, multiply_few<kTiles, C>,
         dim3(blocks_for(a.w.n(), kColumns), static_cast<unsigned>(a.w.groups())), kThreads,
         shared_bytes_of<float>(kWarps * kTiles * kRows * kColumns), arguments_of<BF16, C>(a));
}

template <class C>
void run(Stream& stream, const Int4Matmul& a) {
  if (a.a.dtype() == DType::kF32) {
    launch(stream, multiply_f32<C>,
           dim3(blocks_for(a.w.n(), kWarps), static_cast<unsigned>(a.w.groups())), kThreads, 0,
           arguments_of<float, C>(a));
    return;
  }
  CHECK(in_packs(a.a.as<BF16>().data(), a.w.k()) &&
            reinterpret_cast<uintptr_t>(a.w.codes.data()) % 8 == 0,
        "int4_matmul: a tensor's address is not a multiple of 16");
  if (a.a.shape()[0] <= kRows) {
    run_tiles<1, C>(stream, a);
  } else {
    run_tiles<kMostTiles, C>(stream, a);
  }
}

}  // namespace

void int4_matmul(Stream& stream, const Int4Matmul& a) {
  with_float_type(a.c.dtype(), [&]<class C>() { run<C>(stream, a); });
}

}  // namespace tessera::gpu
