#pragma once

#include <cuda_runtime.h>

#include <bit>
#include <cstdint>

/// kernels/core/fast_math.h for the device, with the same bits as on a CPU that fuses
/// multiplications and additions: where a comparison decides, both must decide alike. Each step
/// names its rounding, so that no compiler chooses it.
namespace tessera::gpu {

/// fast_exp: the same clamps, constants and steps.
__device__ __forceinline__ float exact_exp(float x) {
  constexpr float kRounder = 12582912.0f;
  x = -87.0f > x ? -87.0f : x;  // in this order a NaN stays
  x = 89.0f < x ? 89.0f : x;
  const float shifted = __fmaf_rn(x, 1.44269504f, kRounder);
  const float n = __fadd_rn(shifted, -kRounder);
  const float r = __fmaf_rn(-n, -2.12194440e-4f, __fmaf_rn(-n, 0.693359375f, x));
  float p = __fmaf_rn(r, 0x1.6a2256p-9f, 0x1.123b02p-6f);
  p = __fmaf_rn(p, r, 0x1.5558f8p-4f);
  p = __fmaf_rn(p, r, 0x1.555490p-2f);
  p = __fmaf_rn(p, r, 0x1.fffffcp-1f);
  p = __fmaf_rn(p, r, 2.0f);
  p = __fmaf_rn(p, r, 2.0f);
  const uint32_t exponent = __float_as_uint(shifted) - std::bit_cast<uint32_t>(kRounder) + 126u;
  return __fmul_rn(p, __uint_as_float(exponent << 23));
}

/// fast_sigmoid.
__device__ __forceinline__ float exact_sigmoid(float x) {
  return __frcp_rn(__fadd_rn(1.0f, exact_exp(-x)));
}

}  // namespace tessera::gpu
