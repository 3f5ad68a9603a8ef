#include "kernels/core/cuda_check.h"

namespace tessera::gpu {

void* create_stream(int device_index) {
  cudaStream_t stream = nullptr;
  CUDA_CHECK(cudaSetDevice(device_index));
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return stream;
}

void destroy_stream(void* handle) noexcept { cudaStreamDestroy(static_cast<cudaStream_t>(handle)); }

void synchronize_stream(void* handle) {
  CUDA_CHECK(cudaStreamSynchronize(static_cast<cudaStream_t>(handle)));
}

}  // namespace tessera::gpu
