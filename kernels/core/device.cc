#include "kernels/core/device.h"

#include <limits>

#include "kernels/core/build.h"
#include "kernels/core/error.h"

namespace tessera {

namespace gpu {
Gpus find_gpus();
std::string missing_code(int device_index);
std::string address(int device_index);
int64_t free_bytes(int device_index);
void* create_stream(int device_index);
void destroy_stream(void* handle) noexcept;
void synchronize_stream(void* handle);
void* allocate(int device_index, int64_t bytes);
void release(void* data) noexcept;
}  // namespace gpu

Gpus find_gpus() {
  if constexpr (kCudaBuilt) {
    return gpu::find_gpus();
  } else {
    return {0, "this build has no CUDA backend (cmake --preset cuda makes one)"};
  }
}

std::string gpu_address(int index) {
  if constexpr (kCudaBuilt) {
    return gpu::address(index);
  } else {
    CHECK(false, "gpu_address: this build has no CUDA backend");
    return {};
  }
}

std::string gpu_complaint(const Gpus& gpus, int index) {
  if (gpus.count == 0) {
    return concat("device: gpu was asked for, but there is none to use: ", gpus.trouble,
                  "; use a machine with one, or set device to cpu");
  }
  if (index >= 0 && index < gpus.count) return {};
  return concat("device: GPU ", index, " was asked for, but CUDA sees ", gpus.count,
                gpus.count == 1 ? " GPU" : " GPUs", " here, numbered from 0; name one of them, ",
                "let more be seen (CUDA_VISIBLE_DEVICES), or set device to cpu");
}

int64_t free_bytes(Device device) {
  if constexpr (kCudaBuilt) {
    if (device.kind == DeviceKind::kGpu) return gpu::free_bytes(device.index);
  }
  return std::numeric_limits<int64_t>::max();
}

Stream::Stream(Device device, int threads, int64_t workspace_bytes)
    : device_(device), threads_(device.kind == DeviceKind::kPlan ? 1 : threads) {
  if (device.kind != DeviceKind::kGpu) return;
  std::string complaint = gpu_complaint(find_gpus(), device.index);
  if constexpr (kCudaBuilt) {
    if (complaint.empty()) complaint = gpu::missing_code(device.index);
  }
  if (!complaint.empty()) throw Error(ExitCode::kUsage, complaint);
  if constexpr (kCudaBuilt) {
    handle_ = gpu::create_stream(device.index);
    if (workspace_bytes > 0) workspace_ = gpu::allocate(device.index, workspace_bytes);
    workspace_bytes_ = workspace_bytes;
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
