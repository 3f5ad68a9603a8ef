#pragma once

#include <cuda_runtime.h>

#include <cstdio>

namespace tessera::gpu {

/// What a kernel finds to be wrong with the numbers it reads cannot be thrown, and the host does
/// not wait to ask: the kernel prints `sentence` and stops. The host's next calls on this device
/// fail, and the process has to end. The interpreter of the tests throws.
__device__ __forceinline__ void device_check(bool right, const char* sentence) {
  if (right) return;
  printf("%s\n", sentence);
  __trap();
}
/// The same without a word on a GPU, for code between products that may not call a function.
__device__ __forceinline__ void device_check_silently(bool right, const char*) {
  if (!right) __trap();
}
/// Whether the process goes on after that, with an Error.
inline constexpr bool kStopsAreErrors = false;

}  // namespace tessera::gpu
