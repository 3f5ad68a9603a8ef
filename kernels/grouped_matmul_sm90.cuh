#pragma once

#include "kernels/core/cuda_check.h"
#include "kernels/core/device.h"
#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/ptx.cuh"
#include "kernels/core/ptx_sm90.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/core/tensor_map.cuh"
#include "kernels/core/wgmma_sm90.cuh"
#include "kernels/group_tiles.cuh"

/// What the grouped products for Hopper share. A block per multiprocessor takes tile after tile of
/// 128 x 256: a warp has the memory unit copy steps of 64 of the depth into a ring of four stages,
/// two warp groups multiply 64 x 256 each from there. The copying runs ahead over the ends of
/// tiles, so that it goes on while a tile is written. A step moves 48 KiB for 2 x 128 x 256 x 64
/// operations: 85 operations per byte of the L2 cache.
namespace tessera::gpu::sm90 {

inline constexpr int kRows = 128;
inline constexpr int kColumns = 256;
inline constexpr int kDepth = 64;  // 128 bytes of bf16: a line of the swizzle
inline constexpr int kStages = 4;
inline constexpr int kGroupThreads = 128;
inline constexpr int kThreads =
    3 * kGroupThreads;  // two groups multiply, a warp of the third copies
inline constexpr int kMultiplyingWarps = 2 * kGroupThreads / kWarpSize;
inline constexpr int kLine = 64;                           // elements
inline constexpr uint32_t kBoxBytes = kDepth * kLine * 2;  // of 64 columns, by depth
inline constexpr uint32_t kABytes = kRows * kDepth * 2;
inline constexpr uint32_t kBBytes = kColumns * kDepth * 2;
inline constexpr uint32_t kStageBytes = kABytes + kBBytes;
inline constexpr uint32_t kAligned = 1024;
inline constexpr int64_t kSharedBytes =
    shared_bytes_of<uint64_t>(2 * kStages) + kAligned + kStages * int64_t{kStageBytes};

/// Of 504: twice the first and the second.
inline constexpr int kMultiplyingRegisters = 232;
inline constexpr int kCopyingRegisters = 40;

/// The ring: `full` when a stage's bytes are there, `empty` when all multiplying warps are done.
struct Ring {
  uint64_t* full;
  uint64_t* empty;
  unsigned char* stages;

  __device__ unsigned char* a(int step) const { return stages + step % kStages * kStageBytes; }
  __device__ unsigned char* b(int step) const { return a(step) + kABytes; }
  __device__ static Ring start(SharedMemory& shared);
  __device__ static uint32_t parity(int step) { return static_cast<uint32_t>(step / kStages) & 1; }
};

/// By all lanes of the block; behind it is a barrier of the block.
__device__ inline Ring Ring::start(SharedMemory& shared) {
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
  return ring;
}

/// By who copies, after the last of `steps`: whoever hangs, the kernel stops.
__device__ inline void wait_for_last(const Ring& ring, int steps) {
  if (steps == 0) return;
  wait_for_phase_or_stop(ring.empty + (steps - 1) % kStages, Ring::parity(steps - 1));
}

/// By a whole warp.
__device__ __forceinline__ void give_back(const Ring& ring, int step) {
  __syncwarp();
  if (threadIdx.x % kWarpSize == 0) arrive(ring.empty + step % kStages);
}

using Sums = float[kColumns / 2];  // of a lane: 64 x 256 by 128 lanes

/// Starts the products of a stage: a and b are the first of its matrices, kNextA and kNextB what 16
/// of the depth are in them.
template <bool kAlongRows, bool kAlongColumns>
__device__ __forceinline__ void start_step(Sums& sums, uint64_t a, uint64_t b) {
  // 32 bytes along lines, or 16 lines.
  constexpr int kNextA = kAlongRows ? 128 : 2;
  constexpr int kNextB = kAlongColumns ? 128 : 2;
  hold_sums(sums);
  open_products();
#pragma unroll
  for (int i = 0; i < kDepth / 16; ++i) {
    multiply_64<kColumns, kAlongRows, kAlongColumns>(sums, a + kNextA * i, b + kNextB * i, true);
  }
  close_products();
  hold_sums(sums);
}

inline int multiprocessors(int device) {
  int count = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

}  // namespace tessera::gpu::sm90
