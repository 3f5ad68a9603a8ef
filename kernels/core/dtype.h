#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "kernels/core/error.h"

namespace tessera {

enum class DType : uint8_t { kF32, kBF16, kI32, kI64, kU16, kU8, kF64 };

/// bfloat16 in memory: the upper half of a float. Arithmetic happens in float.
struct BF16 {
  uint16_t bits = 0;
};

int64_t size_of(DType dtype);
const char* name_of(DType dtype);

template <class T>
inline constexpr DType kDTypeOf = DType::kF32;
template <>
inline constexpr DType kDTypeOf<BF16> = DType::kBF16;
template <>
inline constexpr DType kDTypeOf<double> = DType::kF64;
template <>
inline constexpr DType kDTypeOf<int32_t> = DType::kI32;
template <>
inline constexpr DType kDTypeOf<int64_t> = DType::kI64;
template <>
inline constexpr DType kDTypeOf<uint16_t> = DType::kU16;
template <>
inline constexpr DType kDTypeOf<uint8_t> = DType::kU8;

constexpr float to_float(float x) {
  return x;
}
constexpr float to_float(BF16 x) {
  return std::bit_cast<float>(uint32_t{x.bits} << 16);
}

/// Rounds to nearest even, like the hardware; a NaN stays a NaN.
template <class T>
constexpr T from_float(float x);
template <>
constexpr float from_float<float>(float x) {
  return x;
}
template <>
constexpr BF16 from_float<BF16>(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40;
  return {static_cast<uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? quiet_nan : rounded)};
}

/// Calls `f.template operator()<T>()` with the C++ type of a floating dtype.
template <class F>
decltype(auto) with_float_type(DType dtype, F&& f) {
  if (dtype == DType::kBF16) return f.template operator()<BF16>();
  CHECK(dtype == DType::kF32, "expected f32 or bf16, got ", name_of(dtype));
  return f.template operator()<float>();
}

}  // namespace tessera
