#include <cstdint>

#include "kernels/core/cuda_check.h"

namespace tessera::gpu {

enum class Direction { kToDevice, kToHost, kOnDevice };

void copy_bytes(void* stream, const void* from, void* to, int64_t bytes, Direction direction) {
  const cudaMemcpyKind kind = direction == Direction::kToDevice ? cudaMemcpyHostToDevice
                              : direction == Direction::kToHost ? cudaMemcpyDeviceToHost
                                                                : cudaMemcpyDeviceToDevice;
  CUDA_CHECK(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind,
                             static_cast<cudaStream_t>(stream)));
}

}  // namespace tessera::gpu
