#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/core/cuda_check.h"
#include "kernels/core/device.h"

namespace tessera::gpu {

/// The most shared memory that a block gets without asking.
inline constexpr int64_t kPlainSharedBytes = 48 * 1024;

/// Starts `kernel` on the stream: the one way to do it. An empty grid starts nothing. Throws Error
/// when the runtime refuses.
template <class... P, class... A>
void launch(Stream& stream, void (*kernel)(P...), dim3 grid, int threads, int64_t shared_bytes,
            A&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > kPlainSharedBytes) {
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)));
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream.handle());
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...));
}

/// Blocks of a grid axis for `count` items, `each` per block.
constexpr unsigned blocks_for(int64_t count, int64_t each) {
  return static_cast<unsigned>((count + each - 1) / each);
}

}  // namespace tessera::gpu
