#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/core/dtype.h"

/// Small device functions that many kernels share.
namespace tessera::gpu {

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kWholeWarp = 0xFFFFFFFF;

/// Sum over the warp, in every lane; the order is that of a butterfly, always the same.
__device__ __forceinline__ float warp_sum(float value) {
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
    value += __shfl_xor_sync(kWholeWarp, value, bits);
  }
  return value;
}
__device__ __forceinline__ float warp_max(float value) {
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kWholeWarp, value, bits));
  }
  return value;
}

/// Sum over a one-dimensional block of whole warps, in every lane. `scratch` [32] is shared memory;
/// it may be used again after the next barrier of the block.
__device__ __forceinline__ float block_sum(float value, float* scratch) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warps = static_cast<int>(blockDim.x) / kWarpSize;
  value = warp_sum(value);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  return warp_sum(lane < warps ? scratch[lane] : 0.0f);
}

/// 16 bytes of T, read and written at once. Addresses are multiples of 16.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / static_cast<int>(sizeof(T));
  T values[kSize];
};
template <class T>
__device__ __forceinline__ Pack<T> load_pack(const T* address) {
  return *reinterpret_cast<const Pack<T>*>(address);
}
template <class T>
__device__ __forceinline__ void store_pack(T* address, const Pack<T>& pack) {
  *reinterpret_cast<Pack<T>*>(address) = pack;
}
/// Whether rows of `elements` T that begin at `address` can be read in packs: for the launch.
template <class T>
bool in_packs(const T* address, int64_t elements) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0 && elements % Pack<T>::kSize == 0;
}

}  // namespace tessera::gpu
