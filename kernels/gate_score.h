#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace tessera {

/// The score of one block, defined to the last bit: training scores a tile of tokens at once and
/// decoding one token, in files compiled with different flags or for another processor, and all
/// must choose the same blocks. Every product that is added to something is written as a fused
/// multiply-add, so that no compiler is free to round it in another way. What is constexpr is for
/// kernels on a GPU too. F is float or F32x16 (gate_score_lanes.h), with the same bits.

/// What the formulas need of F: whole numbers of its width, and a * b + c, rounded once.
template <class F>
struct GateNumber;
template <>
struct GateNumber<float> {
  using Bits = uint32_t;
  static constexpr float fused(float a, float b, float c) { return std::fma(a, b, c); }
};
template <class F>
[[gnu::always_inline]] constexpr F fused(F a, F b, F c) {
  return GateNumber<F>::fused(a, b, c);
}

/// exp(x) for x <= 0, relative error below 2e-7; x < -86 counts as -86. NaN stays NaN.
/// Source: Cephes expf (Moshier 1989): x = n log 2 + r, a polynomial in r, then 2^n.
template <class F>
[[gnu::always_inline]] constexpr F gate_exp(F x) {
  using U = typename GateNumber<F>::Bits;
  const F zero{};
  const F lowest = zero - 86.0f;
  const F round = zero + 0x1.8p23f;  // adding it rounds to a whole number, found in the low bits
  const F bounded = x < lowest ? lowest : x;
  const F shifted = fused(bounded, zero + 1.44269504f, round);
  const F n = shifted - round;
  const F r = fused(n, zero + 2.12194440e-4f, fused(n, zero - 0.693359375f, bounded));
  F p = fused(zero + 1.9875691500e-4f, r, zero + 1.3981999507e-3f);
  p = fused(p, r, zero + 8.3334519073e-3f);
  p = fused(p, r, zero + 4.1665795894e-2f);
  p = fused(p, r, zero + 1.6666665459e-1f);
  p = fused(p, r, zero + 5.0000001201e-1f);
  p = fused(p, r * r, r + 1.0f);
  // A power of two: the product is exact, fused with a later sum or not.
  const U exponent = (std::bit_cast<U>(shifted) + 127u) << 23;
  return p * std::bit_cast<F>(exponent);
}

/// log(x) for normal x > 0, relative error below 2e-7. NaN stays NaN: its bits, which differ from
/// one processor to the next, are not taken for a number. Source: Cephes logf (Moshier 1989).
template <class F>
[[gnu::always_inline]] constexpr F gate_log(F x) {
  using U = typename GateNumber<F>::Bits;
  // m in [sqrt(1/2), sqrt(2)) with x = m 2^n; `exponent` is n + 256, so that it is not negative.
  const U bits = std::bit_cast<U>(x);
  const U exponent = (bits - 0x3F3504F3u + 0x80000000u) >> 23;
  const F m = std::bit_cast<F>(bits - ((exponent - 256u) << 23)) - 1.0f;
  // A small whole number as a float: the low bits of 2^23 + n.
  const F zero{};
  const F e = std::bit_cast<F>(exponent + 0x4B000000u) - (0x1p23f + 256.0f);
  F p = fused(zero + 7.0376836292e-2f, m, zero - 1.1514610310e-1f);
  p = fused(p, m, zero + 1.1676998740e-1f);
  p = fused(p, m, zero - 1.2420140846e-1f);
  p = fused(p, m, zero + 1.4249322787e-1f);
  p = fused(p, m, zero - 1.6668057665e-1f);
  p = fused(p, m, zero + 2.0000714765e-1f);
  p = fused(p, m, zero - 2.4999993993e-1f);
  p = fused(p, m, zero + 3.3333331174e-1f);
  const F square = m * m;
  const F low = fused(e, zero - 2.12194440e-4f, p * (square * m));
  const F result = fused(e, zero + 0.693359375f, m + fused(zero - 0.5f, square, low));
  return x == x ? result : x;
}

/// log sum_a exp(x_a) of `count` > 1 numbers.
template <class F>
[[gnu::always_inline]] constexpr F gate_log_sum(const F* x, int64_t count) {
  F largest = x[0];
  for (int64_t a = 1; a < count; ++a) largest = x[a] > largest ? x[a] : largest;
  F sum{};
  for (int64_t a = 0; a < count; ++a) sum += gate_exp(x[a] - largest);
  return largest + gate_log(sum);
}

/// 1 / sqrt(gate_dim).
inline float gate_scale(int64_t gate_dim) {
  return 1.0f / std::sqrt(static_cast<float>(gate_dim));
}

/// Products in ascending order of the dimension, one rounding each. Adding 0 turns -0 into +0, so
/// that equal scores have equal bits.
inline float gate_product(const float* qt, const float* kt, int64_t gate_dim) {
  float sum = 0;
  for (int64_t d = 0; d < gate_dim; ++d) sum = std::fma(kt[d], qt[d], sum);
  return std::fma(sum, gate_scale(gate_dim), 0.0f);
}

/// z = log sum_{a < gate_keys} exp(qt . kt_a / sqrt(gate_dim)); without exp for one key.
/// `kt`: [gate_keys, gate_dim], the keys of one block. A NaN or an infinite product gives NaN or
/// an infinity. The same bits as gate_log_sum of the products. Source: dgsa definition 2.2.
inline float gate_score(const float* qt, const float* kt, int64_t gate_dim, int64_t gate_keys) {
  float largest = gate_product(qt, kt, gate_dim);
  if (gate_keys == 1) return largest;
  for (int64_t a = 1; a < gate_keys; ++a) {
    const float x = gate_product(qt, kt + a * gate_dim, gate_dim);
    largest = x > largest ? x : largest;
  }
  float sum = 0;
  for (int64_t a = 0; a < gate_keys; ++a) {
    sum += gate_exp(gate_product(qt, kt + a * gate_dim, gate_dim) - largest);
  }
  return largest + gate_log(sum);
}

/// A whole number that orders scores as `<` does; NaN comes before all others.
constexpr int32_t score_key(float z) {
  const int32_t bits = z == z ? std::bit_cast<int32_t>(z) : -1;
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

/// The score with this key.
constexpr float score_of_key(int32_t key) {
  return std::bit_cast<float>(key ^ ((key >> 31) & 0x7FFFFFFF));
}

}  // namespace tessera
