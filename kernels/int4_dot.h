#pragma once

#include <array>

#include "kernels/core/simd.h"
#include "kernels/int4_weights.h"

namespace tessera::cpu {

/// What the CPU does with a run of Int4Weights: 64 codes in 32 bytes, whose numbers come in the
/// order of the codes, the lower halves of the bytes first. For speed a product may be of codes
/// with a bias, which the offset takes out again.

#ifdef __AVX512BF16__

/// The codes of a run plus 128 as bf16: the code is the end of the fraction.
class Int4Codes {
 public:
  /// Of times(). In f32, which has to be right to the last bits, none.
  static constexpr float bias(BF16) { return 128 + 8; }
  static constexpr float bias(float) { return 0; }

  [[gnu::always_inline]] explicit Int4Codes(const uint8_t* from) {
    const __m512i bytes = _mm512_maskz_cvtepu8_epi16(
        0xFFFFFFFF, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    const __m512i one28 = _mm512_set1_epi16(0x4300);
    constexpr int kAndOr = 0xEA;  // (a & b) | c
    low_ = _mm512_ternarylogic_epi32(bytes, _mm512_set1_epi16(15), one28, kAndOr);
    high_ = _mm512_or_si512(_mm512_maskz_srli_epi16(0xFFFFFFFF, bytes, 4), one28);
  }

  /// sum_i (q_i - 8 + bias(x_i)) x_i, in sixteen parts.
  [[gnu::always_inline]] F32x16 times(const BF16* x) const {
    const auto add = [](__m512 sums, __m512i codes, const BF16* numbers) {
      return _mm512_dpbf16_ps(sums, __m512bh(codes), __m512bh(_mm512_loadu_si512(numbers)));
    };
    return F32x16(add(add(_mm512_setzero_ps(), low_, x), high_, x + Int4Weights::kRun / 2));
  }
  [[gnu::always_inline]] F32x16 times(const float* x) const {
    return quarter<0>(low_) * load(x) + quarter<1>(low_) * load(x + 16) +
           quarter<0>(high_) * load(x + 32) + quarter<1>(high_) * load(x + 48);
  }
  /// scale (q_i - 8) + offset.
  template <class T>
  [[gnu::always_inline]] void unpack(F32x16 scale, F32x16 offset, T* to) const {
    store(to, scale * quarter<0>(low_) + offset);
    store(to + 16, scale * quarter<1>(low_) + offset);
    store(to + 32, scale * quarter<0>(high_) + offset);
    store(to + 48, scale * quarter<1>(high_) + offset);
  }

 private:
  template <int kHalf>
  [[gnu::always_inline]] static F32x16 quarter(__m512i codes) {
    const __m512i wide =
        _mm512_maskz_cvtepu16_epi32(kAllLanes, _mm512_maskz_extracti64x4_epi64(0xF, codes, kHalf));
    return std::bit_cast<F32x16>(std::bit_cast<U32x16>(wide) << 16) - bias(BF16{});
  }

  __m512i low_;
  __m512i high_;
};

#else

/// The codes of a run less 8.
class Int4Codes {
 public:
  /// Of times().
  template <class T>
  static constexpr float bias(T) {
    return 0;
  }

  [[gnu::always_inline]] explicit Int4Codes(const uint8_t* from) {
    using U8x16 [[gnu::vector_size(16)]] = uint8_t;
    for (int half = 0; half < 2; ++half) {
      U8x16 bytes;
      std::memcpy(&bytes, from + 16 * half, sizeof(bytes));
#ifdef __AVX512F__
      const auto wide = std::bit_cast<I32x16>(
          _mm512_maskz_cvtepu8_epi32(kAllLanes, std::bit_cast<__m128i>(bytes)));
#else
      const I32x16 wide = __builtin_convertvector(bytes, I32x16);
#endif
      codes_[half] = __builtin_convertvector((wide & 15) - 8, F32x16);
      codes_[2 + half] = __builtin_convertvector((wide >> 4) - 8, F32x16);
    }
  }

  /// sum_i (q_i - 8 + bias(x_i)) x_i, in sixteen parts.
  template <class T>
  [[gnu::always_inline]] F32x16 times(const T* x) const {
    return codes_[0] * load(x) + codes_[1] * load(x + 16) + codes_[2] * load(x + 32) +
           codes_[3] * load(x + 48);
  }
  /// scale (q_i - 8) + offset.
  template <class T>
  [[gnu::always_inline]] void unpack(F32x16 scale, F32x16 offset, T* to) const {
    for (int part = 0; part < 4; ++part) store(to + 16 * part, scale * codes_[part] + offset);
  }

 private:
  F32x16 codes_[4];
};

#endif

/// Scales and offsets of up to sixteen runs in f32, zeros behind the last. Offsets have the bias of
/// the codes taken out.
struct Int4Scales {
  static constexpr int64_t kRuns = 16;

  [[gnu::always_inline]] Int4Scales(const BF16* pairs, int64_t count, float bias) {
    U32x16 words{};
    if (count == kRuns) {
      std::memcpy(&words, pairs, sizeof(words));  // a move, where the other is a call
    } else {
      std::memcpy(&words, pairs, static_cast<size_t>(count) * 4);
    }
    const auto of_runs = std::bit_cast<F32x16>(words << 16);
    store(scales.data(), of_runs);
    offsets = std::bit_cast<F32x16>(words & 0xFFFF0000) - bias * of_runs;
  }

  alignas(64) std::array<float, kRuns> scales;
  F32x16 offsets;
};

/// Bytes. A processor begins anew to fetch ahead at each page of 4096, and one has few runs.
inline constexpr int64_t kAhead = 4096;

/// The products of one column of weights [k] with kRows rows:
///   sum_i w_i x_i = sum over the runs of s sum_i (q_i - 8) x_i + m sum_i x_i.
/// numbers: [kRows, k] in the order of the codes; sums: [kRows, k / 64], of the runs.
template <int kRows, class T>
[[gnu::always_inline]] inline std::array<float, kRows> int4_dot(const uint8_t* codes,
                                                                const BF16* scales,
                                                                const T* numbers, const float* sums,
                                                                int64_t k) {
  F32x16 products[kRows] = {};
  const int64_t runs = k / Int4Weights::kRun;
  for (int64_t first = 0; first < runs; first += Int4Scales::kRuns) {
    const int64_t count = runs - first < Int4Scales::kRuns ? runs - first : Int4Scales::kRuns;
    const Int4Scales of_runs(scales + 2 * first, count, Int4Codes::bias(T{}));
    for (int row = 0; row < kRows; ++row) {
      products[row] += of_runs.offsets * load_first(sums + row * runs + first, count);
    }
    for (int64_t run = first; run < first + count; ++run) {
      const uint8_t* const from = codes + run * (Int4Weights::kRun / 2);
      __builtin_prefetch(from + kAhead);
      const Int4Codes of_run(from);
      const F32x16 scale = broadcast(of_runs.scales[static_cast<size_t>(run - first)]);
      for (int row = 0; row < kRows; ++row) {
        products[row] += scale * of_run.times(numbers + row * k + run * Int4Weights::kRun);
      }
    }
  }
  std::array<float, kRows> to;
  for (int row = 0; row < kRows; ++row) to[static_cast<size_t>(row)] = sum(products[row]);
  return to;
}

}  // namespace tessera::cpu
