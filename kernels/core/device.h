#pragma once

#include <cstdint>
#include <memory>

#include "kernels/core/thread_pool.h"

namespace tessera {

/// Where memory lives and kernels run. `kPlan` runs nothing: kernels only check shapes, and
/// memory is counted, not allocated.
enum class DeviceKind : uint8_t { kCpu, kGpu, kPlan };

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;
  /// Buffers on a GPU are memory that the host reaches too, at a price: for tests.
  bool managed = false;

  friend bool operator==(const Device&, const Device&) = default;
};

/// An ordered queue of work on one device. On kCpu work is done at once, on the stream's own
/// threads; on kPlan it is not done at all.
class Stream {
 public:
  /// `threads` is for kCpu: how many threads its kernels use, at least 1.
  explicit Stream(Device device, int threads = 1);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  Device device() const { return device_; }
  bool on(DeviceKind kind) const { return device_.kind == kind; }
  void synchronize();

  /// For kernels in namespace cpu.
  ThreadPool& threads() { return threads_; }
  /// The cudaStream_t, for kernels in namespace gpu; nullptr elsewhere.
  void* handle() const { return handle_; }
  /// Scratch memory of kernels in namespace gpu (see workspace.h); nullptr elsewhere.
  static constexpr int64_t kWorkspaceBytes = int64_t{64} << 20;
  void* workspace() const { return workspace_; }

 private:
  Device device_;
  ThreadPool threads_;
  void* handle_ = nullptr;
  void* workspace_ = nullptr;
};

}  // namespace tessera
