#include "kernels/core/capability.h"
#include "kernels/core/cuda_check.h"
#include "kernels/core/device.h"

namespace tessera::gpu {
namespace {

/// Asked for by missing_code; it is in the library for the same GPUs as all others.
__global__ void probe() {}

int attribute_of(int device_index, cudaDeviceAttr attribute) {
  int value = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device_index));
  return value;
}

}  // namespace

Gpus find_gpus() {
  Gpus found;
  const cudaError_t status = cudaGetDeviceCount(&found.count);
  if (status == cudaSuccess && found.count > 0) return found;
  return {0, status == cudaSuccess ? "CUDA sees no device" : cudaGetErrorString(status)};
}

int compute_capability(int device_index) {
  return 10 * attribute_of(device_index, cudaDevAttrComputeCapabilityMajor) +
         attribute_of(device_index, cudaDevAttrComputeCapabilityMinor);
}

std::string missing_code(int device_index) {
  CUDA_CHECK(cudaSetDevice(device_index));
  cudaFuncAttributes attributes{};
  const cudaError_t status = cudaFuncGetAttributes(&attributes, probe);
  if (status != cudaErrorNoKernelImageForDevice) {
    CUDA_CHECK(status);
    return {};
  }
  return concat("device: gpu was asked for, but GPU ", device_index, " has compute capability ",
                attribute_of(device_index, cudaDevAttrComputeCapabilityMajor), ".",
                attribute_of(device_index, cudaDevAttrComputeCapabilityMinor),
                ", for which this build has no code; add it to CMAKE_CUDA_ARCHITECTURES, or set "
                "device to cpu");
}

std::string address(int device_index) {
  char text[32] = {};
  CUDA_CHECK(cudaDeviceGetPCIBusId(text, sizeof text, device_index));
  return text;
}

int64_t free_bytes(int device_index) {
  size_t free = 0;
  size_t all = 0;
  CUDA_CHECK(cudaSetDevice(device_index));
  CUDA_CHECK(cudaMemGetInfo(&free, &all));
  return static_cast<int64_t>(free);
}

void* create_stream(int device_index) {
  cudaStream_t stream = nullptr;
  CUDA_CHECK(cudaSetDevice(device_index));
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return stream;
}

void destroy_stream(void* handle) noexcept {
  cudaStreamDestroy(static_cast<cudaStream_t>(handle));
}

void synchronize_stream(void* handle) {
  CUDA_CHECK(cudaStreamSynchronize(static_cast<cudaStream_t>(handle)));
}

}  // namespace tessera::gpu
