#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "kernels/core/simd.h"

namespace tessera {

/// Functions of F = float or F32x16, without branches, so that loops over them vectorise. Both give
/// the same bits where the compiler fuses multiplications and additions alike.

/// e^x with a relative error below 2e-7. 0 for x < -86.99 (e^x < 1.7e-38), so also for -inf; +inf
/// for x > 88.7229; NaN for NaN.
template <class F>
[[gnu::always_inline]] inline F fast_exp(F x) {
  using U = std::conditional_t<std::is_same_v<F, float>, uint32_t, U32x16>;
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693359375f;  // few bits, so that n * kLn2High is exact
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  x = smaller(F{} + 89.0f, larger(F{} - 87.0f, x));  // in this order a NaN stays
  // e^x = 2^n e^r with |r| <= ln(2) / 2. The polynomial, fitted to the relative error (3e-9),
  // is 2 e^r, so that the factor 2^(n - 1) is finite also for the largest n, which is 128.
  const F shifted = x * kLog2E + kRounder;
  const F n = shifted - kRounder;
  const F r = (x - n * kLn2High) - n * kLn2Low;
  F p = r * 0x1.6a2256p-9f + 0x1.123b02p-6f;
  p = p * r + 0x1.5558f8p-4f;
  p = p * r + 0x1.555490p-2f;
  p = p * r + 0x1.fffffcp-1f;
  p = p * r + 2.0f;
  p = p * r + 2.0f;
  const U exponent = std::bit_cast<U>(shifted) - std::bit_cast<uint32_t>(kRounder) + 126u;
  return p * std::bit_cast<F>(exponent << 23);
}

/// 1 / (1 + e^-x), relative error below 4e-7 for x > -80.
template <class F>
[[gnu::always_inline]] inline F fast_sigmoid(F x) {
  return 1.0f / (1.0f + fast_exp(-x));
}

}  // namespace tessera
