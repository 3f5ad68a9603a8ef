#pragma once

#include "kernels/core/tensor_view.h"

namespace tessera {

/// Owns bytes on one device, zero-filled. Move-only. Allocated at start-up, never inside a step.
/// On kPlan it has a size but no memory.
class Buffer {
 public:
  /// Every buffer and every tensor of an arena starts at a multiple of this many bytes.
  static constexpr int64_t kAlignment = 256;

  Buffer() = default;
  Buffer(Device device, int64_t bytes);
  /// Host memory that `device` copies from and to: a GPU does so by itself, while the host goes on,
  /// only with memory that stays where it is. Ordinary memory for the CPU.
  static Buffer pinned(Device device, int64_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  Device device() const { return device_; }
  int64_t bytes() const { return bytes_; }
  /// A tensor at `offset_bytes`. Throws when it would not fit.
  TensorView view(DType dtype, Shape shape, int64_t offset_bytes = 0) const;

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
  Device device_;
  bool pinned_ = false;
};

/// `bytes` rounded up to Buffer::kAlignment.
constexpr int64_t aligned(int64_t bytes) {
  return (bytes + Buffer::kAlignment - 1) / Buffer::kAlignment * Buffer::kAlignment;
}

}  // namespace tessera
