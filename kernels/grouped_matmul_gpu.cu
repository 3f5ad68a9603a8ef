#include <algorithm>

#include "kernels/core/launch.cuh"
#include "kernels/group_tiles.cuh"
#include "kernels/grouped_matmul.h"
#include "kernels/tensor_core_tile.cuh"

// A block per tile of 128 x 128. bf16 whose rows are whole pieces of 16 bytes goes to the tensor
// cores (tensor_core_tile.cuh); everything else, which no model for speed has, is multiplied and
// added one by one in f32, with the error of any f32 sum: k roundings of 2^-24 at worst. Each tile
// of c is written by one block, after a sum over the whole depth in its order: no atomics.
// A tile of depth k reads 2 (128 + 128) k bytes of bf16 for 2 x 128 x 128 k operations, mostly from
// the L2 cache: 64 operations per byte.

namespace tessera::gpu {
namespace {

/// c[rows of e] = a[rows of e] op(b[e]).
template <class T>
struct Forward {
  void* c;
  const T* a;
  const T* b;
  RowGroups groups;
  TileOrder order;
  int n;
  int k;
  bool transpose_b;
  bool c_is_bf16;

  __device__ bool a_inner() const { return true; }
  __device__ bool b_inner() const { return transpose_b; }

  /// The tile of this block; without rows: none.
  __device__ TileProduct<T> tile() const {
    const int block = static_cast<int>(blockIdx.x);
    const RowTile rows = find_row_tile(groups, order.row(block), kTileSize);
    const int column = order.column(block) * kTileSize;
    const int64_t at = int64_t{rows.first} * n + column;
    return {.c = c_is_bf16 ? static_cast<void*>(static_cast<BF16*>(c) + at)
                           : static_cast<void*>(static_cast<float*>(c) + at),
            .a = a + int64_t{rows.first} * k,
            .b = b + int64_t{rows.group} * n * k + (transpose_b ? int64_t{column} * k : column),
            .c_stride = n,
            .a_stride = k,
            .b_stride = transpose_b ? k : n,
            .m = rows.rows,
            .n = std::min(int{kTileSize}, n - column),
            .depth = k,
            .c_is_bf16 = c_is_bf16,
            .add = false};
  }
};

/// c[e] += a[rows of e]^T b[rows of e], [n, k].
template <class T>
struct Weight {
  float* c;
  const T* a;
  const T* b;
  RowGroups groups;
  int row_tiles;
  int column_tiles;
  int n;
  int k;

  __device__ bool a_inner() const { return false; }
  __device__ bool b_inner() const { return false; }

  __device__ TileProduct<T> tile() const {
    const int block = static_cast<int>(blockIdx.x);
    const int group = block / (row_tiles * column_tiles);
    const int row = block % row_tiles * kTileSize;
    const int column = block / row_tiles % column_tiles * kTileSize;
    const int first = groups.edge(group);
    const int rows = groups.edge(group + 1) - first;
    return {.c = c + (int64_t{group} * n + row) * k + column,
            .a = a + int64_t{first} * n + row,
            .b = b + int64_t{first} * k + column,
            .c_stride = k,
            .a_stride = n,
            .b_stride = k,
            .m = rows > 0 ? std::min(int{kTileSize}, n - row) : 0,
            .n = std::min(int{kTileSize}, k - column),
            .depth = rows,
            .c_is_bf16 = false,
            .add = true};
  }
};

template <class Problem, bool kAInner, bool kBInner>
__global__ void __launch_bounds__(kTileThreads, 2) multiply_on_tensor_cores(Problem problem) {
  SharedMemory shared;
  BF16* const stages = shared.take<BF16>(2 * kTileStages * kTileElements);
  const TileProduct<BF16> p = problem.tile();
  if (p.m == 0) return;
  TileSums sums = {};
  multiply_tile<kAInner, kBInner>(sums, p, stages);
  write_tile(sums, p, stages);
}

constexpr int kPlainThreads = 256;
constexpr int kPlainDepth = 8;
constexpr int kPlainPitch = kTileSize + 4;  // neighbours in the depth are in different banks
constexpr int kPlainElements = kPlainDepth * kPlainPitch;
constexpr int kPlainLoads = kPlainDepth * kTileSize / kPlainThreads;

/// Part of an operand's next step, on its way from memory to shared memory, [depth][line] there.
template <class T>
struct PlainLoads {
  float values[kPlainLoads];

  /// Lanes are neighbours in memory.
  __device__ static int line(int i, bool inner) {
    const int thread = static_cast<int>(threadIdx.x);
    return inner ? thread / kPlainDepth + i * (kPlainThreads / kPlainDepth) : thread % kTileSize;
  }
  __device__ static int depth(int i, bool inner) {
    const int thread = static_cast<int>(threadIdx.x);
    return inner ? thread % kPlainDepth : thread / kTileSize + i * (kPlainThreads / kTileSize);
  }
  __device__ void read(const T* data, int64_t stride, bool inner, int lines, int first, int end) {
#pragma unroll
    for (int i = 0; i < kPlainLoads; ++i) {
      const int l = line(i, inner);
      const int d = first + depth(i, inner);
      const bool valid = l < lines && d < end;
      values[i] = valid ? to_float(data[inner ? l * stride + d : d * stride + l]) : 0;
    }
  }
  __device__ void write(float* tile, bool inner) const {
#pragma unroll
    for (int i = 0; i < kPlainLoads; ++i) {
      tile[depth(i, inner) * kPlainPitch + line(i, inner)] = values[i];
    }
  }
};

using PlainSums = float[8][8];

/// The lane's eight rows or columns are two times four, so that a warp reads without conflicts.
__device__ __forceinline__ int plain_line(int position, int i) {
  return i / 4 * (kTileSize / 2) + position * 4 + i % 4;
}

__device__ __forceinline__ void multiply_step(PlainSums& sums, const float* a, const float* b) {
  const int row = static_cast<int>(threadIdx.x) / 16;
  const int column = static_cast<int>(threadIdx.x) % 16;
#pragma unroll
  for (int d = 0; d < kPlainDepth; ++d) {
    Pack<float> x[2];
    Pack<float> y[2];
    for (int half = 0; half < 2; ++half) {
      x[half] = load_pack(a + d * kPlainPitch + plain_line(row, 4 * half));
      y[half] = load_pack(b + d * kPlainPitch + plain_line(column, 4 * half));
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        sums[i][j] = fmaf(x[i / 4].values[i % 4], y[j / 4].values[j % 4], sums[i][j]);
      }
    }
  }
}

template <class T>
__device__ void write_plain(const PlainSums& sums, const TileProduct<T>& p) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int row = plain_line(static_cast<int>(threadIdx.x) / 16, i);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int column = plain_line(static_cast<int>(threadIdx.x) % 16, j);
      if (row >= p.m || column >= p.n) continue;
      const int64_t at = row * p.c_stride + column;
      if (p.c_is_bf16) {
        static_cast<BF16*>(p.c)[at] = from_float<BF16>(sums[i][j]);
      } else {
        float& c = static_cast<float*>(p.c)[at];
        c = p.add ? c + sums[i][j] : sums[i][j];
      }
    }
  }
}

template <class T, class Problem>
__global__ void __launch_bounds__(kPlainThreads, 2) multiply_plainly(Problem problem) {
  SharedMemory shared;
  float* const a = shared.take<float>(2 * kPlainElements);
  float* const b = shared.take<float>(2 * kPlainElements);
  const TileProduct<T> p = problem.tile();
  if (p.m == 0) return;
  // Lanes beyond the tile's edge only load.
  const bool active = plain_line(static_cast<int>(threadIdx.x) / 16, 0) < p.m &&
                      plain_line(static_cast<int>(threadIdx.x) % 16, 0) < p.n;
  PlainSums sums = {};
  PlainLoads<T> a_loads;
  PlainLoads<T> b_loads;
  const auto read = [&](int first) {
    a_loads.read(p.a, p.a_stride, problem.a_inner(), p.m, first, p.depth);
    b_loads.read(p.b, p.b_stride, problem.b_inner(), p.n, first, p.depth);
  };
  read(0);
  for (int first = 0, used = 0; first < p.depth; first += kPlainDepth) {
    a_loads.write(a + used, problem.a_inner());
    b_loads.write(b + used, problem.b_inner());
    __syncthreads();
    read(first + kPlainDepth);
    if (active) multiply_step(sums, a + used, b + used);
    used = kPlainElements - used;
  }
  write_plain(sums, p);
}
constexpr int64_t kPlainSharedBytesOfTile = 2 * shared_bytes_of<float>(2 * kPlainElements);

RowGroups groups_of(const ConstTensorView& offsets, int64_t rows) {
  return {offsets.as<int32_t>().data(), static_cast<int>(offsets.elements() - 1),
          static_cast<int>(rows)};
}

/// Whether the tensor cores' copies of 16 bytes are whole and aligned.
template <class T>
bool whole_chunks(const ConstTensorView& a, const ConstTensorView& b, const ConstTensorView& c) {
  const auto in_chunks = [](const ConstTensorView& x) {
    return in_packs(static_cast<const T*>(x.data()), x.shape()[-1]);
  };
  return std::is_same_v<T, BF16> && in_chunks(a) && in_chunks(b) && in_chunks(c);
}

}  // namespace

void grouped_matmul(Stream& stream, const GroupedMatmul& a) {
  sm90_takes(stream, a) ? grouped_matmul_sm90(stream, a) : grouped_matmul_sm80(stream, a);
}
void grouped_matmul_weight(Stream& stream, const GroupedMatmulWeight& a) {
  sm90_takes(stream, a) ? grouped_matmul_weight_sm90(stream, a)
                        : grouped_matmul_weight_sm80(stream, a);
}

void grouped_matmul_sm80(Stream& stream, const GroupedMatmul& a) {
  const int64_t rows = a.a.shape()[0];
  const int64_t k = a.a.shape()[1];
  const int64_t n = a.c.shape()[1];
  const int64_t groups = a.offsets.elements() - 1;
  if (rows == 0 || n == 0 || groups == 0) return;
  const int64_t column_tiles = (n + kTileSize - 1) / kTileSize;
  const dim3 grid(TileOrder::blocks(most_row_tiles(rows, groups, kTileSize), column_tiles));
  with_float_type(a.a.dtype(), [&]<class T>() {
    const Forward<T> forward{.c = a.c.data(),
                             .a = a.a.as<T>().data(),
                             .b = a.b.as<T>().data(),
                             .groups = groups_of(a.offsets, rows),
                             .order = {static_cast<int>(column_tiles)},
                             .n = static_cast<int>(n),
                             .k = static_cast<int>(k),
                             .transpose_b = a.transpose_b,
                             .c_is_bf16 = a.c.dtype() == DType::kBF16};
    if constexpr (std::is_same_v<T, BF16>) {
      if (whole_chunks<T>(a.a, a.b, a.c)) {
        return launch(stream,
                      a.transpose_b ? multiply_on_tensor_cores<Forward<T>, true, true>
                                    : multiply_on_tensor_cores<Forward<T>, true, false>,
                      grid, kTileThreads, kTileSharedBytes, forward);
      }
    }
    launch(stream, multiply_plainly<T, Forward<T>>, grid, kPlainThreads, kPlainSharedBytesOfTile,
           forward);
  });
}

void grouped_matmul_weight_sm80(Stream& stream, const GroupedMatmulWeight& a) {
  const int64_t rows = a.a.shape()[0];
  const int64_t n = a.a.shape()[1];
  const int64_t k = a.b.shape()[1];
  const int64_t groups = a.offsets.elements() - 1;
  if (rows == 0 || n == 0 || k == 0) return;
  const int64_t row_tiles = (n + kTileSize - 1) / kTileSize;
  const int64_t column_tiles = (k + kTileSize - 1) / kTileSize;
  const dim3 grid(static_cast<unsigned>(groups * row_tiles * column_tiles));
  with_float_type(a.a.dtype(), [&]<class T>() {
    const Weight<T> weight{.c = a.c.as<float>().data(),
                           .a = a.a.as<T>().data(),
                           .b = a.b.as<T>().data(),
                           .groups = groups_of(a.offsets, rows),
                           .row_tiles = static_cast<int>(row_tiles),
                           .column_tiles = static_cast<int>(column_tiles),
                           .n = static_cast<int>(n),
                           .k = static_cast<int>(k)};
    if constexpr (std::is_same_v<T, BF16>) {
      if (whole_chunks<T>(a.a, a.b, a.c)) {
        return launch(stream, multiply_on_tensor_cores<Weight<T>, false, false>, grid, kTileThreads,
                      kTileSharedBytes, weight);
      }
    }
    launch(stream, multiply_plainly<T, Weight<T>>, grid, kPlainThreads, kPlainSharedBytesOfTile,
           weight);
  });
}

}  // namespace tessera::gpu
