#pragma once

#include <cstdint>
#include <memory>
#include <string>

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

  friend bool operator==(const Device& a, const Device& b) {
    return a.kind == b.kind && a.index == b.index;
  }
};

/// The GPUs that this process sees.
struct Gpus {
  int count = 0;
  std::string trouble = {};  ///< why there are none, in the words of CUDA or of this build
};
Gpus find_gpus();

/// Why GPU `index` cannot be used where there are `gpus`, and what to do; empty when it can.
std::string gpu_complaint(const Gpus& gpus, int index);

/// Where GPU `index` is in its machine, "0000:1b:00.0": two processes that see it under different
/// numbers see the same GPU there.
std::string gpu_address(int index);

/// Bytes of a GPU's memory that nobody has; of other devices the most that a number can say.
int64_t free_bytes(Device device);

/// An ordered queue of work on one device. On kCpu work is done at once, on the stream's own
/// threads; on kPlan it is not done at all.
class Stream {
 public:
  /// Of scratch memory, on a GPU.
  static constexpr int64_t kWorkspaceBytes = int64_t{64} << 20;

  /// `threads`, at least 1: how many the kernels of kCpu use, and what the host does beside kGpu. A
  /// GPU's stream for which no kernel with scratch memory is meant may do without. Throws kUsage
  /// when the device is a GPU that is not there, or that this build has no code for.
  explicit Stream(Device device, int threads = 1, int64_t workspace_bytes = kWorkspaceBytes);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  Device device() const { return device_; }
  bool on(DeviceKind kind) const { return device_.kind == kind; }
  void synchronize();

  /// For kernels in namespace cpu, and for work on host memory.
  ThreadPool& threads() { return threads_; }
  /// The cudaStream_t, for kernels in namespace gpu; nullptr elsewhere.
  void* handle() const { return handle_; }
  /// Scratch memory of kernels in namespace gpu (see workspace.h); nullptr elsewhere.
  void* workspace() const { return workspace_; }
  int64_t workspace_bytes() const { return workspace_bytes_; }

 private:
  Device device_;
  ThreadPool threads_;
  void* handle_ = nullptr;
  void* workspace_ = nullptr;
  int64_t workspace_bytes_ = 0;
};

}  // namespace tessera
