#pragma once

#include "tests/simt/block_runner.h"

/// Stands in for kernels/core/device_check.cuh in the interpreter: what is wrong ends the launch,
/// which throws an Error with the sentence.
namespace tessera::gpu {

inline void device_check(bool right, const char* sentence) {
  if (!right) simt::stop_kernel(sentence);
}
template <bool kSilent>
void device_check(bool right, const char* sentence) {
  device_check(right, sentence);
}
inline constexpr bool kStopsAreErrors = true;

}  // namespace tessera::gpu
