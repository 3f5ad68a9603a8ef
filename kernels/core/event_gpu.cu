#include "kernels/core/cuda_check.h"

namespace tessera::gpu {

void* create_event(int device_index, bool timed) {
  cudaEvent_t event = nullptr;
  CUDA_CHECK(cudaSetDevice(device_index));
  CUDA_CHECK(cudaEventCreateWithFlags(&event, timed ? cudaEventDefault : cudaEventDisableTiming));
  return event;
}

void destroy_event(void* handle) noexcept {
  cudaEventDestroy(static_cast<cudaEvent_t>(handle));
}

void record_event(void* handle, void* stream) {
  CUDA_CHECK(cudaEventRecord(static_cast<cudaEvent_t>(handle), static_cast<cudaStream_t>(stream)));
}

void hold_stream(void* stream, void* handle) {
  CUDA_CHECK(
      cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), static_cast<cudaEvent_t>(handle), 0));
}

void wait_for_event(void* handle) {
  CUDA_CHECK(cudaEventSynchronize(static_cast<cudaEvent_t>(handle)));
}

bool event_passed(void* handle) {
  const cudaError_t status = cudaEventQuery(static_cast<cudaEvent_t>(handle));
  if (status == cudaErrorNotReady) return false;
  CUDA_CHECK(status);
  return true;
}

double milliseconds_between(void* from, void* to) {
  float milliseconds = 0;
  CUDA_CHECK(cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(from),
                                  static_cast<cudaEvent_t>(to)));
  return milliseconds;
}

}  // namespace tessera::gpu
