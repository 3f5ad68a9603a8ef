#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace tessera {

/// The score of one block, defined to the last bit: training scores a tile of tokens at once and
/// decoding one token, in files compiled with different flags, and both must choose the same
/// blocks. Every product that is added to something is written as a fused multiply-add, so that
/// no compiler is free to round it in another way. Functions are straight lines without branches:
/// a loop over tokens around them vectorises.

/// exp(x) for x <= 0, relative error below 2e-7; x < -86 counts as -86. NaN stays NaN.
/// Source: Cephes expf (Moshier 1989): x = n log 2 + r, a polynomial in r, then 2^n.
inline float gate_exp(float x) {
  constexpr float kRound = 0x1.8p23f;  // adding it rounds to a whole number, found in the low bits
  const float bounded = x < -86.0f ? -86.0f : x;
  const float shifted = std::fma(bounded, 1.44269504f, kRound);
  const float n = shifted - kRound;
  const float r = std::fma(n, 2.12194440e-4f, std::fma(n, -0.693359375f, bounded));
  float p = std::fma(1.9875691500e-4f, r, 1.3981999507e-3f);
  p = std::fma(p, r, 8.3334519073e-3f);
  p = std::fma(p, r, 4.1665795894e-2f);
  p = std::fma(p, r, 1.6666665459e-1f);
  p = std::fma(p, r, 5.0000001201e-1f);
  p = std::fma(p, r * r, r + 1.0f);
  // A power of two: the product is exact, fused with a later sum or not.
  const uint32_t exponent = (std::bit_cast<uint32_t>(shifted) + 127) << 23;
  return p * std::bit_cast<float>(exponent);
}

/// log(x) for normal x > 0, relative error below 2e-7. Source: Cephes logf (Moshier 1989).
inline float gate_log(float x) {
  // m in [sqrt(1/2), sqrt(2)) with x = m 2^n.
  const int32_t bits = std::bit_cast<int32_t>(x);
  const int32_t n = (bits - 0x3F3504F3) >> 23;
  const float m = std::bit_cast<float>(bits - (n << 23)) - 1.0f;
  const float e = static_cast<float>(n);
  float p = std::fma(7.0376836292e-2f, m, -1.1514610310e-1f);
  p = std::fma(p, m, 1.1676998740e-1f);
  p = std::fma(p, m, -1.2420140846e-1f);
  p = std::fma(p, m, 1.4249322787e-1f);
  p = std::fma(p, m, -1.6668057665e-1f);
  p = std::fma(p, m, 2.0000714765e-1f);
  p = std::fma(p, m, -2.4999993993e-1f);
  p = std::fma(p, m, 3.3333331174e-1f);
  const float square = m * m;
  const float low = std::fma(e, -2.12194440e-4f, p * (square * m));
  return std::fma(e, 0.693359375f, m + std::fma(-0.5f, square, low));
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
/// an infinity. Source: dgsa definition 2.2.
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
inline int32_t score_key(float z) {
  const int32_t bits = z == z ? std::bit_cast<int32_t>(z) : -1;
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

/// The score with this key.
inline float score_of_key(int32_t key) {
  return std::bit_cast<float>(key ^ ((key >> 31) & 0x7FFFFFFF));
}

}  // namespace tessera
