#include "kernels/core/device.h"

#include "kernels/core/build.h"
#include "kernels/core/error.h"

namespace tessera {

namespace gpu {
void* create_stream(int device_index);
void destroy_stream(void* handle) noexcept;
void synchronize_stream(void* handle);
void* allocate(int device_index, int64_t bytes);
void release(void* data) noexcept;
}  // namespace gpu

Stream::Stream(Device device, int threads)
    : device_(device), threads_(device.kind == DeviceKind::kPlan ? 1 : threads) {
  if (device.kind != DeviceKind::kGpu) return;
  if constexpr (kCudaBuilt) {
    handle_ = gpu::create_stream(device.index);
    workspace_ = gpu::allocate(device.index, kWorkspaceBytes);
  } else {
    throw Error(ExitCode::kUsage,
                "device: gpu was asked for, but this build has no CUDA backend; configure with "
                "cmake --preset cuda, or set device to cpu");
  }
}

Stream::~Stream() {
  if constexpr (kCudaBuilt) {
    if (handle_ == nullptr) return;
    gpu::release(workspace_);
    gpu::destroy_stream(handle_);
  }
}

void Stream::synchronize() {
  if constexpr (kCudaBuilt) {
    if (handle_ != nullptr) gpu::synchronize_stream(handle_);
  }
}

}  // namespace tessera
