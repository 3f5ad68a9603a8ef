#pragma once

#include "kernels/core/device_math.cuh"

namespace tessera::gpu {

/// Sum of the lanes up to and including this one.
__device__ __forceinline__ int warp_prefix_sum(int value) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const int before = __shfl_up_sync(kWholeWarp, value, static_cast<unsigned>(offset));
    if (lane >= offset) value += before;
  }
  return value;
}

/// The same over a one-dimensional block of whole warps; `total` gets the sum of the block.
/// `scratch` [32] is shared memory, which may be used again after the next barrier of the block.
__device__ __forceinline__ int block_prefix_sum(int value, int* scratch, int& total) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warps = static_cast<int>(blockDim.x) / kWarpSize;
  value = warp_prefix_sum(value);
  if (lane == kWarpSize - 1) scratch[warp] = value;
  __syncthreads();
  const int sums = warp_prefix_sum(lane < warps ? scratch[lane] : 0);
  total = __shfl_sync(kWholeWarp, sums, kWarpSize - 1);
  const int before = __shfl_sync(kWholeWarp, sums, warp == 0 ? 0 : warp - 1);
  return warp == 0 ? value : before + value;
}

}  // namespace tessera::gpu
