#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "kernels/core/dtype.h"

namespace tessera {

/// Sixteen numbers that are worked on at once: compiler vectors, so `a * b + c`, `a < b` and
/// `mask ? a : b` work lane by lane, on any processor. Functions are always inlined, so that the
/// layers above, which are compiled for any processor, may include this.
inline constexpr int64_t kLanes = 16;
using F32x16 [[gnu::vector_size(64)]] = float;
using I32x16 [[gnu::vector_size(64)]] = int32_t;
using U32x16 [[gnu::vector_size(64)]] = uint32_t;
using U16x16 [[gnu::vector_size(32)]] = uint16_t;

#ifdef __AVX512F__
// Masked forms compile to the plain instruction, and g++ 12 takes the unmasked ones for reads of
// uninitialised memory (GCC bug 105593).
inline constexpr __mmask16 kAllLanes = 0xFFFF;
#endif

[[gnu::always_inline]] inline F32x16 broadcast(float x) {
  return x - F32x16{};
}

/// Sixteen floats or bf16 from memory of any alignment, as floats.
[[gnu::always_inline]] inline F32x16 load(const float* from) {
  F32x16 x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}
[[gnu::always_inline]] inline F32x16 load(const BF16* from) {
  U16x16 bits;
  std::memcpy(&bits, from, sizeof(bits));
#ifdef __AVX512F__
  // One instruction; the compiler would take three.
  const auto wide =
      std::bit_cast<U32x16>(_mm512_maskz_cvtepu16_epi32(kAllLanes, std::bit_cast<__m256i>(bits)));
#else
  const U32x16 wide = __builtin_convertvector(bits, U32x16);
#endif
  return std::bit_cast<F32x16>(wide << 16);
}

/// Rounds to nearest even as from_float<BF16>; but the processor's own instruction, where there is
/// one, makes 0 of numbers below 2^-126.
[[gnu::always_inline]] inline void store(float* to, F32x16 x) {
  std::memcpy(to, &x, sizeof(x));
}
[[gnu::always_inline]] inline void store(BF16* to, F32x16 x) {
#ifdef __AVX512BF16__
  const __m256bh half = _mm512_cvtneps_pbh(std::bit_cast<__m512>(x));
#else
  const U32x16 bits = std::bit_cast<U32x16>(x);
  const U32x16 rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  const U32x16 quiet_nan = (bits >> 16) | 0x40;
  const U16x16 half = __builtin_convertvector(x == x ? rounded : quiet_nan, U16x16);
#endif
  std::memcpy(static_cast<void*>(to), &half, sizeof(half));
}

/// The larger, or smaller, in each lane; b where one is NaN.
[[gnu::always_inline]] inline F32x16 larger(F32x16 a, F32x16 b) {
#ifdef __AVX512F__
  return std::bit_cast<F32x16>(
      _mm512_maskz_max_ps(kAllLanes, std::bit_cast<__m512>(a), std::bit_cast<__m512>(b)));
#else
  return a > b ? a : b;
#endif
}
[[gnu::always_inline]] inline F32x16 smaller(F32x16 a, F32x16 b) {
#ifdef __AVX512F__
  return std::bit_cast<F32x16>(
      _mm512_maskz_min_ps(kAllLanes, std::bit_cast<__m512>(a), std::bit_cast<__m512>(b)));
#else
  return a < b ? a : b;
#endif
}
[[gnu::always_inline]] inline float larger(float a, float b) {
  return a > b ? a : b;
}
[[gnu::always_inline]] inline float smaller(float a, float b) {
  return a < b ? a : b;
}

/// As load and store of the first `count` <= 16 elements; the other lanes are `rest`.
template <class T>
[[gnu::always_inline]] inline F32x16 load_first(const T* from, int64_t count, float rest = 0) {
  if (count >= kLanes) return load(from);
  T row[kLanes];
  store(row, broadcast(rest));
  std::memcpy(row, from, static_cast<size_t>(count) * sizeof(T));
  return load(row);
}
template <class T>
[[gnu::always_inline]] inline void store_first(T* to, F32x16 x, int64_t count) {
  if (count >= kLanes) return store(to, x);
  T row[kLanes];
  store(row, x);
  std::memcpy(to, row, static_cast<size_t>(count) * sizeof(T));
}

/// Calls body(first, lanes) for consecutive parts of [0, count): lanes is kLanes, a constant that
/// folds away, except in the last part. For load_first and store_first.
template <class Body>
[[gnu::always_inline]] inline void for_lanes(int64_t count, Body&& body) {
  int64_t first = 0;
  for (; first + kLanes <= count; first += kLanes) body(first, kLanes);
  if (first < count) body(first, count - first);
}

/// Sum of the lanes, as a tree: the same bits on every processor.
[[gnu::always_inline]] inline float sum(F32x16 x) {
  using F32x8 [[gnu::vector_size(32)]] = float;
  using F32x4 [[gnu::vector_size(16)]] = float;
  const F32x8 a = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                  __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  const F32x4 b =
      __builtin_shufflevector(a, a, 0, 1, 2, 3) + __builtin_shufflevector(a, a, 4, 5, 6, 7);
  return (b[0] + b[2]) + (b[1] + b[3]);
}

/// Largest lane; a NaN may be lost.
[[gnu::always_inline]] inline float largest(F32x16 x) {
  float best = x[0];
  for (int lane = 1; lane < kLanes; ++lane) best = x[lane] > best ? x[lane] : best;
  return best;
}

}  // namespace tessera
