#pragma once

#include "kernels/core/buffer.h"

namespace tessera {

/// Hands out tensors of one Buffer in stack order: last allocated, first released; the same calls
/// from the same mark give the same addresses. On kPlan it only counts, so a step run there gives
/// the exact size. Tensors come uninitialised: whoever allocates overwrites.
class Arena {
 public:
  /// `capacity` in bytes; ignored on kPlan.
  Arena(Device device, int64_t capacity);

  /// `name` is for the message when the arena is full.
  TensorView allocate(DType dtype, Shape shape, const char* name);
  /// The largest number of bytes that was ever in use.
  int64_t high_water() const { return high_water_; }
  int64_t capacity() const { return capacity_; }
  Device device() const { return device_; }

  /// A point to return to: release(mark()) frees all that was allocated in between.
  int64_t mark() const { return top_; }
  void release(int64_t mark);

  /// Frees on destruction everything allocated since construction.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), top_(arena.top_) {}
    ~Scope() { arena_.top_ = top_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    int64_t top_;
  };

 private:
  Buffer buffer_;
  Device device_;
  int64_t capacity_ = 0;
  int64_t top_ = 0;
  int64_t high_water_ = 0;
};

}  // namespace tessera
