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
  // Streams of ours do not wait for the default one, in which the zeros are under way.
  CUDA_CHECK(cudaDeviceSynchronize());
  return data;
}

void* allocate_pinned(int device_index, int64_t bytes) {
  void* data = nullptr;
  CUDA_CHECK(cudaSetDevice(device_index));
  CUDA_CHECK(cudaMallocHost(&data, static_cast<size_t>(bytes)));
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

void release_pinned(void* data) noexcept {
  cudaFreeHost(data);
}

}  // namespace tessera::gpu
