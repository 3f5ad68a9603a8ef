#pragma once

#include <cstdint>
#include <memory>

#include "kernels/core/device.h"

namespace tessera::support {

/// The device whose kernels this test program runs: the CPU, or in builds with the CUDA backend the
/// GPU (device_cpu.cc or device_gpu.cc is linked in). Tests of code for the CPU alone say Device{}.
Device device();
/// The same device, with memory out of the host's reach: for tests of code that must not touch it.
/// They read and write it with elements() and set_elements() (random_tensor.h).
inline Device bare_device() {
  return {device().kind, device().index};
}
/// Whether a kernel of device() that finds wrong numbers throws: not on a real GPU, which it stops
/// (kernels/core/device_check.cuh).
bool kernels_can_throw();

/// Copies between memory of the host and of device(), either way.
void copy_bytes(void* to, const void* from, int64_t bytes);

/// Zero-filled memory that kernels of device() and the test both reach.
class SharedBytes {
 public:
  explicit SharedBytes(int64_t bytes);
  ~SharedBytes();
  SharedBytes(SharedBytes&& other) noexcept;
  SharedBytes& operator=(SharedBytes&& other) noexcept;
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

}  // namespace tessera::support
