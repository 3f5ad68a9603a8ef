#include <cuda_runtime.h>

#include <cstring>
#include <utility>

#include "kernels/core/cuda_check.h"
#include "kernels/core/device_check.cuh"
#include "tests/support/device.h"

// Managed memory: the driver moves pages to whoever touches them. Tests on a GPU run with
// CUDA_LAUNCH_BLOCKING=1, so that a kernel is over when its call returns.

namespace tessera::support {

Device device() {
  return {DeviceKind::kGpu, 0, /*managed=*/true};
}
bool kernels_can_throw() {
  return gpu::kStopsAreErrors;
}

void copy_bytes(void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return;
  CUDA_CHECK(cudaDeviceSynchronize());  // asynchronous copies go on even so
  CUDA_CHECK(cudaMemcpy(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault));
}

SharedBytes::SharedBytes(int64_t bytes) {
  if (bytes == 0) return;
  CUDA_CHECK(cudaMallocManaged(&data_, static_cast<size_t>(bytes)));
  std::memset(data_, 0, static_cast<size_t>(bytes));
}
SharedBytes::~SharedBytes() {
  cudaFree(data_);
}
SharedBytes::SharedBytes(SharedBytes&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)) {}
SharedBytes& SharedBytes::operator=(SharedBytes&& other) noexcept {
  std::swap(data_, other.data_);
  return *this;
}

}  // namespace tessera::support
