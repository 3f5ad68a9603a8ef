#include <algorithm>

#include "kernels/core/device_check.cuh"
#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/core/workspace.h"
#include "kernels/gate_pool.h"
#include "kernels/segment_grid.cuh"

// Bound by the bandwidth of reading k0 (2 d bytes per key in bf16; a second time from the L1 cache)
// and writing dk0 (4 d bytes). A warp per key; a warp sums dr over its own keys in shared memory,
// and the sums of warps and of blocks, whose number depends on the shapes alone, are added in their
// order.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

/// Neighbours that one lane reads at once.
template <class T, int kCount>
struct alignas(kCount * sizeof(T)) Numbers {
  T values[kCount];
};

template <class T>
struct Pool {
  float* dk0;       // [groups, keys, d], may be null
  float* partials;  // [groups, grid.x, d], may be null
  const float* dkbar;
  const T* kbar;
  const float* alpha;
  const T* k0;
  const float* r;
  GridView grid;
  int64_t keys;
  int blocks;  // that kbar has room for
  int blocks_of_task;
  int d;
  int gate_keys;
};

/// Whether a block is pooled by this grid: it is complete, and its last token is a query here.
__device__ bool pooled_here(const GridView& grid, int segment, int number) {
  return grid.pieces.find(segment, (number + 1) * grid.block - 1) >= 0;
}

/// Row of the first key of a block that is pooled here, -1 of another one.
__device__ int first_row(const GridView& grid, int block) {
  if (block >= grid.block_count()) return -1;
  const GridRange range = find_block(grid, block);
  if (!pooled_here(grid, range.segment, range.number)) return -1;
  device_check(range.tokens == grid.block, "gate_pool: the keys of a block are not all in one run");
  return range.first;
}

template <int kStep, class A>
__device__ float dot(const A* a, const float* b, int d, int lane) {
  float sum = 0;
  for (int i = lane * kStep; i < d; i += kWarpSize * kStep) {
    const auto x = *reinterpret_cast<const Numbers<A, kStep>*>(a + i);
    const auto y = *reinterpret_cast<const Numbers<float, kStep>*>(b + i);
    for (int j = 0; j < kStep; ++j) sum += to_float(x.values[j]) * y.values[j];
  }
  return warp_sum(sum);
}

/// e_j = alpha_j (k0_j - kbar) . dkbar of the key in `row`; writes dk0_j and adds e_j k0_j to dr.
template <class T, int kStep>
__device__ void key_backward(const Pool<T>& a, int64_t row, const float* dkbar, float at_mean,
                             const float* r, float* dr, int lane) {
  const T* const k0 = a.k0 + row * a.d;
  const float alpha = a.alpha[row];
  const float e = alpha * (dot<kStep>(k0, dkbar, a.d, lane) - at_mean);
  for (int i = lane * kStep; i < a.d; i += kWarpSize * kStep) {
    const auto k = *reinterpret_cast<const Numbers<T, kStep>*>(k0 + i);
    for (int j = 0; j < kStep; ++j) dr[i + j] += e * to_float(k.values[j]);
    if (a.dk0 == nullptr) continue;
    Numbers<float, kStep> dk0;
    for (int j = 0; j < kStep; ++j) dk0.values[j] = alpha * dkbar[i + j] + e * r[i + j];
    *reinterpret_cast<Numbers<float, kStep>*>(a.dk0 + row * a.d + i) = dk0;
  }
}

/// A task, some of the grid's blocks, of group blockIdx.y.
template <class T, int kStep>
__global__ void __launch_bounds__(kThreads) backward_blocks(Pool<T> a) {
  SharedMemory shared;
  float* const sums = shared.take<float>(kWarps * a.d);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t group = blockIdx.y;
  const float* const r = a.r + group * a.d;
  float* const dr = sums + warp * a.d;
  for (int i = lane * kStep; i < a.d; i += kWarpSize * kStep) {
    for (int j = 0; j < kStep; ++j) dr[i + j] = 0;
  }
  const int rows = a.grid.block / a.gate_keys;
  const int begin = static_cast<int>(blockIdx.x) * a.blocks_of_task;
  const int end = std::min(a.blocks, begin + a.blocks_of_task);
  for (int b = begin; b < end; ++b) {
    const int first = first_row(a.grid, b);
    if (first < 0) continue;
    for (int part = 0; part < a.gate_keys; ++part) {
      const int64_t key = ((group * a.blocks + b) * a.gate_keys + part) * a.d;
      const float at_mean = dot<kStep>(a.kbar + key, a.dkbar + key, a.d, lane);
      for (int j = warp; j < rows; j += kWarps) {
        const int64_t row = group * a.keys + first + part * rows + j;
        key_backward<T, kStep>(a, row, a.dkbar + key, at_mean, r, dr, lane);
      }
    }
  }
  if (a.partials == nullptr) return;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < a.d; i += kThreads) {
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += sums[w * a.d + i];
    a.partials[(group * gridDim.x + blockIdx.x) * a.d + i] = sum;
  }
}

/// A warp per key: 0 where its block is not pooled here.
__global__ void __launch_bounds__(kThreads)
    clear_elsewhere(float* dk0, GridView grid, int64_t keys, int d) {
  const int row = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (row >= grid.runs.starts[grid.runs.size]) return;
  const int run = range_of(grid.runs.starts, grid.runs.size, row);
  const int position = row - grid.runs.origin(run);
  if (pooled_here(grid, grid.runs.segment(run), position / grid.block)) return;
  float* const to = dk0 + (int64_t{blockIdx.y} * keys + row) * d;
  for (int i = static_cast<int>(threadIdx.x) % kWarpSize; i < d; i += kWarpSize) to[i] = 0;
}

/// A warp per 32 columns.
__global__ void add_partials(float* dr, const float* partials, int tasks, int d) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= d) return;
  const int64_t group = blockIdx.y;
  float sum = 0;
  for (int task = 0; task < tasks; ++task) sum += partials[(group * tasks + task) * d + i];
  dr[group * d + i] += sum;
}

}  // namespace

void gate_pool_backward(Stream& stream, const GatePoolBackward& a) {
  constexpr int64_t kMostTasks = 256;
  const auto groups = static_cast<unsigned>(a.k0.shape()[0]);
  const int64_t d = a.k0.shape()[2];
  const int64_t keys = a.grid.keys();
  const int64_t blocks = a.kbar.shape()[1] / a.gate_keys;
  const GridView grid = view_of(a.grid);
  float* const dk0 = a.dk0.empty() ? nullptr : a.dk0.as<float>().data();
  if (dk0 != nullptr) {
    launch(stream, clear_elsewhere, dim3(blocks_for(keys, kWarps), groups), kThreads, 0, dk0, grid,
           keys, static_cast<int>(d));
  }
  const auto tasks = static_cast<unsigned>(std::min(blocks, kMostTasks));
  if (tasks == 0 || groups == 0) return;
  float* const partials =
      a.dr.empty() ? nullptr
                   : Workspace(stream, "gate_pool_backward").take<float>(groups * tasks * d);
  with_float_type(a.k0.dtype(), [&]<class T>() {
    const Pool<T> pool{.dk0 = dk0,
                       .partials = partials,
                       .dkbar = a.dkbar.as<float>().data(),
                       .kbar = a.kbar.as<T>().data(),
                       .alpha = a.alpha.as<float>().data(),
                       .k0 = a.k0.as<T>().data(),
                       .r = a.r.as<float>().data(),
                       .grid = grid,
                       .keys = keys,
                       .blocks = static_cast<int>(blocks),
                       .blocks_of_task = static_cast<int>(blocks_for(blocks, tasks)),
                       .d = static_cast<int>(d),
                       .gate_keys = static_cast<int>(a.gate_keys)};
    constexpr int kStep = 4;
    const bool together = d % kStep == 0 && in_packs(pool.dk0, kStep) &&
                          in_packs(pool.dkbar, kStep) && in_packs(pool.kbar, Pack<T>::kSize) &&
                          in_packs(pool.k0, Pack<T>::kSize) && in_packs(pool.r, kStep);
    launch(stream, together ? backward_blocks<T, kStep> : backward_blocks<T, 1>,
           dim3(tasks, groups), kThreads, shared_bytes_of<float>(kWarps * d), pool);
  });
  if (partials == nullptr) return;
  launch(stream, add_partials, dim3(blocks_for(d, kWarpSize), groups), kWarpSize, 0,
         a.dr.as<float>().data(), partials, static_cast<int>(tasks), static_cast<int>(d));
}

}  // namespace tessera::gpu
