#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace tessera::gpu {

/// All shared memory of a kernel is taken from what its launch asked for; nothing else declares
/// any, so that one number is the whole truth and the interpreter sees every access.
extern __shared__ unsigned char dynamic_shared_memory[];

/// Bytes that `count` of T take from SharedMemory: for the launch.
template <class T>
constexpr int64_t shared_bytes_of(int64_t count) {
  return (count * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
}

/// Hands out the block's shared memory piece by piece, each aligned to 16. All lanes take the same.
class SharedMemory {
 public:
  template <class T>
  __device__ T* take(int count) {
    T* const piece = reinterpret_cast<T*>(dynamic_shared_memory + used_);
    used_ += static_cast<int>(shared_bytes_of<T>(count));
    return piece;
  }

 private:
  int used_ = 0;
};

}  // namespace tessera::gpu
