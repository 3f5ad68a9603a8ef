#include <cstdint>
#include <cstring>

#include "kernels/core/cuda_check.h"

namespace tessera::gpu {

void* allocate(int device_index, int64_t bytes) {
  void* data = nullptr;
  CUDA_CHECK(cudaSetDevice(device_index));
  CUDA_CHECK(cudaMalloc(&data, static_cast<size_t>(bytes)));
  return data;
}

void* allocate_zeroed(int device_index, int64_t bytes) {
  void* const data = allocate(device_index, bytes);
  CUDA_CHECK(cudaMemset(data, 0, static_cast<size_t>(bytes)));
  return data;
}

void* allocate_managed(int device_index, int64_t bytes) {
  void* data = nullptr;
  CUDA_CHECK(cudaSetDevice(device_index));
  CUDA_CHECK(cudaMallocManaged(&data, static_cast<size_t>(bytes)));
  std::memset(data, 0, static_cast<size_t>(bytes));
  return data;
}

void release(void* data) noexcept {
  cudaFree(data);
}

}  // namespace tessera::gpu
