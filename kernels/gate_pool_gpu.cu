#include <algorithm>

#include "kernels/core/device_check.cuh"
#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/gate_pool.h"
#include "kernels/segment_grid.cuh"

// Bound by the bandwidth of reading k0: a block of lanes has one part, of at most a grid block. It
// reads the part twice, first by rows for the logits, then by columns for the mean, the second
// time from the first cache. alpha and kbar are small: 4 and 2 d / rows bytes per key.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 256;

template <class T>
struct Forward {
  T* kbar;         // [groups, blocks * gate_keys, d]
  float* alpha;    // [groups, keys]
  const T* k0;     // [groups, keys, d]
  const float* r;  // [groups, d]
  GridView grid;
  int blocks;  // that kbar has room for
  int gate_keys;
  int d;
};

/// Whether a block is pooled by this grid: it is complete, and its last token is a query here.
__device__ bool pooled_here(const GridView& grid, int segment, int number) {
  return grid.pieces.find(segment, (number + 1) * grid.block - 1) >= 0;
}

/// Row of the first key of a block that is pooled here, or -1.
__device__ int first_row(const GridView& grid, int block) {
  if (block >= grid.block_count()) return -1;
  const GridRange range = find_block(grid, block);
  if (!pooled_here(grid, range.segment, range.number)) return -1;
  device_check(range.tokens == grid.block, "gate_pool: not all keys of a block are in one run");
  return range.first;
}

/// Sets alpha to 0 at the keys of blocks that are not pooled here: a block of lanes per part of a
/// run.
__global__ void __launch_bounds__(kThreads) clear_elsewhere(float* alpha, GridView grid) {
  const StretchPart part = find_part(grid.runs, grid.block, static_cast<int>(blockIdx.x));
  if (part.count == 0) return;
  if (pooled_here(grid, grid.runs.segment(part.stretch), part.first / grid.block)) return;
  const int64_t first =
      int64_t{blockIdx.y} * grid.keys + grid.runs.origin(part.stretch) + part.first;
  for (int j = static_cast<int>(threadIdx.x); j < part.count; j += kThreads) alpha[first + j] = 0;
}

/// alpha[j] = softmax_j(r . k0_j) over the rows of a part, in shared memory. A warp per row.
template <class T, bool kPacked>
__device__ void weigh(float* alpha, float* scratch, const T* k0, const float* r, int rows, int d) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  constexpr int kStep = kPacked ? Pack<T>::kSize : 1;
  for (int j = warp; j < rows; j += kThreads / kWarpSize) {
    const T* row = k0 + int64_t{j} * d;
    float product = 0;
    for (int i = lane * kStep; i < d; i += kWarpSize * kStep) {
      if constexpr (kPacked) {
        const Pack<T> pack = load_pack(row + i);
        for (int e = 0; e < kStep; ++e) product += to_float(pack.values[e]) * r[i + e];
      } else {
        product += to_float(row[i]) * r[i];
      }
    }
    product = warp_sum(product);
    if (lane == 0) alpha[j] = product;
  }
  __syncthreads();
  float highest = -INFINITY;
  for (int j = lane; j < rows; j += kWarpSize) highest = fmaxf(highest, alpha[j]);
  highest = warp_max(highest);
  __syncthreads();  // every warp has read the logits
  float total = 0;
  for (int j = static_cast<int>(threadIdx.x); j < rows; j += kThreads) {
    alpha[j] = expf(alpha[j] - highest);
    total += alpha[j];
  }
  total = block_sum(total, scratch);
  for (int j = static_cast<int>(threadIdx.x); j < rows; j += kThreads) alpha[j] /= total;
  __syncthreads();
}

/// How the lanes share the columns of a mean: `across` of them side by side, and the rows dealt to
/// `deep` such teams, whose sums are added in their order.
struct Shares {
  int across;
  int deep;
};
__host__ __device__ inline Shares shares_of(int columns) {
  const int across = std::min(columns, int{kThreads});
  return {across, kThreads / across};
}

/// mean = sum_j alpha_j k0_j. `sums` [deep, d] is shared memory.
template <class T, bool kPacked>
__device__ void average(T* mean, float* sums, const float* alpha, const T* k0, int rows, int d) {
  constexpr int kStep = kPacked ? Pack<T>::kSize : 1;
  const int columns = d / kStep;
  const Shares shares = shares_of(columns);
  const int team = static_cast<int>(threadIdx.x) / shares.across;
  for (int c = static_cast<int>(threadIdx.x) % shares.across; team < shares.deep && c < columns;
       c += shares.across) {
    float sum[kStep] = {};
    for (int j = team; j < rows; j += shares.deep) {
      const T* at = k0 + int64_t{j} * d + c * kStep;
      if constexpr (kPacked) {
        const Pack<T> pack = load_pack(at);
        for (int e = 0; e < kStep; ++e) sum[e] += alpha[j] * to_float(pack.values[e]);
      } else {
        sum[0] += alpha[j] * to_float(*at);
      }
    }
    for (int e = 0; e < kStep; ++e) sums[team * d + c * kStep + e] = sum[e];
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < d; i += kThreads) {
    float sum = 0;
    for (int t = 0; t < shares.deep; ++t) sum += sums[t * d + i];
    mean[i] = from_float<T>(sum);
  }
}

/// A block of lanes per part of a block, and group.
template <class T, bool kPacked>
__global__ void __launch_bounds__(kThreads) pool_part(Forward<T> a) {
  const int rows = a.grid.block / a.gate_keys;
  const int columns = kPacked ? a.d / Pack<T>::kSize : a.d;
  SharedMemory shared;
  float* const scratch = shared.take<float>(kWarpSize);
  float* const alpha = shared.take<float>(rows);
  float* const sums = shared.take<float>(shares_of(columns).deep * a.d);
  const int block = static_cast<int>(blockIdx.x) / a.gate_keys;
  const int part = static_cast<int>(blockIdx.x) % a.gate_keys;
  device_check(a.grid.block_count() <= a.blocks, "gate_pool: kbar has too little room for blocks");
  const int64_t group = blockIdx.y;
  T* const mean = a.kbar + (group * a.blocks * a.gate_keys + blockIdx.x) * a.d;
  const int row = first_row(a.grid, block);
  if (row < 0) {
    for (int i = static_cast<int>(threadIdx.x); i < a.d; i += kThreads) mean[i] = T{};
    return;
  }
  const int64_t first = group * a.grid.keys + row + part * rows;
  const T* const k0 = a.k0 + first * a.d;
  weigh<T, kPacked>(alpha, scratch, k0, a.r + group * a.d, rows, a.d);
  for (int j = static_cast<int>(threadIdx.x); j < rows; j += kThreads) {
    a.alpha[first + j] = alpha[j];
  }
  average<T, kPacked>(mean, sums, alpha, k0, rows, a.d);
}

}  // namespace

void gate_pool_forward(Stream& stream, const GatePoolForward& a) {
  const int64_t groups = a.k0.shape()[0];
  const int64_t d = a.k0.shape()[2];
  const GridView grid = view_of(a.grid);
  const auto y = static_cast<unsigned>(groups);
  float* const alpha = a.alpha.as<float>().data();
  const int64_t parts = part_bound(grid.runs, grid.keys, grid.block);
  launch(stream, clear_elsewhere, dim3(static_cast<unsigned>(parts), y), kThreads, 0, alpha, grid);
  if (d == 0) return;
  with_float_type(a.k0.dtype(), [&]<class T>() {
    const Forward<T> forward{.kbar = a.kbar.as<T>().data(),
                             .alpha = alpha,
                             .k0 = a.k0.as<T>().data(),
                             .r = a.r.as<float>().data(),
                             .grid = grid,
                             .blocks = static_cast<int>(a.kbar.shape()[1] / a.gate_keys),
                             .gate_keys = static_cast<int>(a.gate_keys),
                             .d = static_cast<int>(d)};
    const bool packed = in_packs(forward.k0, d);
    const int64_t columns = packed ? d / Pack<T>::kSize : d;
    const int64_t shared = shared_bytes_of<float>(kWarpSize) +
                           shared_bytes_of<float>(a.grid.block / a.gate_keys) +
                           shared_bytes_of<float>(shares_of(static_cast<int>(columns)).deep * d);
    launch(stream, packed ? pool_part<T, true> : pool_part<T, false>,
           dim3(static_cast<unsigned>(a.kbar.shape()[1]), y), kThreads, shared, forward);
  });
}

}  // namespace tessera::gpu
