#include <cuda_runtime.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "kernels/core/error.h"
#include "tests/simt/memory_checks.h"

// The CUDA runtime over the interpreter's memory; streams, events and graphs are in
// stream_calls.cc.

namespace tessera::simt {
namespace {

/// Copies of CUDA may not leave an allocation: what the runtime would call an invalid argument.
bool fits(const void* data, size_t bytes) {
  return bytes <= bytes_from(data);
}

/// Makes whole pages zeros that take no memory: each page in use costs time in every launch, as
/// the device's memory is opened and closed.
bool drop_pages(void* data, size_t bytes) {
  constexpr size_t kPage = 4096;
  if (reinterpret_cast<uintptr_t>(data) % kPage != 0 || bytes % kPage != 0) return false;
  return madvise(data, bytes, MADV_DONTNEED) == 0;
}

cudaError_t allocated(void** data, size_t bytes, bool managed) {
  try {
    *data = allocate(bytes, managed);
    return cudaSuccess;
  } catch (const std::bad_alloc&) {
    return cudaErrorMemoryAllocation;
  }
}

/// That of the GPU which is played: 90, or what the environment says.
int capability() {
  static const int chosen = [] {
    const char* const asked = std::getenv("TESSERA_SIMT_CAPABILITY");
    return asked == nullptr ? 90 : std::atoi(asked);
  }();
  return chosen;
}

void expect_success(cudaError_t status) {
  CHECK(status == cudaSuccess, "work of a graph: ", cudaGetErrorString(status));
}

}  // namespace
}  // namespace tessera::simt

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureUnjoined:
      return "capturing stream has unjoined work";
    default:
      return "invalid argument";
  }
}
cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 8;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return device >= 0 && device < 8 ? cudaSuccess : cudaErrorInvalidDevice;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor   ? tessera::simt::capability() / 10
           : attribute == cudaDevAttrComputeCapabilityMinor ? tessera::simt::capability() % 10
                                                            : 4;
  return cudaSuccess;
}
// One GPU under eight numbers: ranks that are processes share it.
cudaError_t cudaDeviceGetPCIBusId(char* text, int bytes, int) {
  std::snprintf(text, static_cast<size_t>(bytes), "0000:00:00.0");
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** data, size_t bytes) {
  return tessera::simt::allocated(data, bytes, /*managed=*/false);
}
cudaError_t cudaMallocManaged(void** data, size_t bytes, unsigned) {
  return tessera::simt::allocated(data, bytes, /*managed=*/true);
}
cudaError_t cudaFree(void* data) {
  tessera::simt::release(data);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** data, size_t bytes) {
  return tessera::simt::allocated(data, bytes, /*managed=*/true);
}
cudaError_t cudaFreeHost(void* data) {
  return cudaFree(data);
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* all) {
  *free = *all = size_t{64} << 30;
  return cudaSuccess;
}

cudaError_t cudaMemset(void* data, int byte, size_t bytes) {
  if (bytes == 0) return cudaSuccess;
  if (!tessera::simt::fits(data, bytes)) return cudaErrorInvalidValue;
  const tessera::simt::DeviceWork work;
  if (byte == 0 && tessera::simt::drop_pages(data, bytes)) return cudaSuccess;
  std::memset(data, byte, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* data, int byte, size_t bytes, cudaStream_t stream) {
  if (!tessera::simt::is_captured(stream)) return cudaMemset(data, byte, bytes);
  tessera::simt::note(stream,
                      [=] { tessera::simt::expect_success(cudaMemset(data, byte, bytes)); });
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (bytes == 0) return cudaSuccess;
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if ((to_device && !tessera::simt::fits(to, bytes)) ||
      (from_device && !tessera::simt::fits(from, bytes))) {
    return cudaErrorInvalidValue;
  }
  const tessera::simt::DeviceWork work;
  std::memmove(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  if (!tessera::simt::is_captured(stream)) return cudaMemcpy(to, from, bytes, kind);
  tessera::simt::note(stream,
                      [=] { tessera::simt::expect_success(cudaMemcpy(to, from, bytes, kind)); });
  return cudaSuccess;
}
