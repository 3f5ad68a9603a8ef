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
/// The same for kernels with wgmma, in silence: a call of printf, taken or not, would make ptxas
/// wait for each product before the next.
template <bool kSilent>
__device__ __forceinline__ void device_check(bool right, const char* sentence) {
  if constexpr (kSilent) {
    if (!right) __trap();
  } else {
    device_check(right, sentence);
  }
}
/// Whether the process goes on after that, with an Error.
inline constexpr bool kStopsAreErrors = false;

}  // namespace tessera::gpu
