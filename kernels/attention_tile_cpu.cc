#include <algorithm>
#include <array>
#include <utility>

#include "kernels/attention_tile.h"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace tessera::cpu {

namespace {

constexpr int64_t kMaxWords = 256;  // numbers of a row

using U16x32 [[gnu::vector_size(64)]] = uint16_t;
/// A factor of either kind as it lies in memory.
using Word [[gnu::may_alias]] = uint32_t;

/// Sixteen factors, and sum + a b lane by lane for one factor a.
[[gnu::always_inline]] inline F32x16 load_factors(const float* from) {
  return load(from);
}
[[gnu::always_inline]] inline U32x16 load_factors(const BF16x2* from) {
  U32x16 pairs;
  std::memcpy(&pairs, from, sizeof(pairs));
  return pairs;
}
[[gnu::always_inline]] inline F32x16 multiply_add(F32x16 sum, float a, F32x16 b) {
  return broadcast(a) * b + sum;
}
[[gnu::always_inline]] inline F32x16 multiply_add(F32x16 sum, BF16x2 a, U32x16 b) {
#ifdef __AVX512BF16__
  const __m512i pair = _mm512_set1_epi32(static_cast<int>(a.bits));
  return F32x16(_mm512_dpbf16_ps(__m512(sum), __m512bh(b), __m512bh(pair)));
#else
  const F32x16 low = std::bit_cast<F32x16>(b << 16);
  const F32x16 high = std::bit_cast<F32x16>(b & 0xFFFF0000u);
  sum += broadcast(std::bit_cast<float>(a.bits << 16)) * low;
  return sum + broadcast(std::bit_cast<float>(a.bits & 0xFFFF0000u)) * high;
#endif
}

template <class F, int kRows, int kVectors>
void multiply_block(const TileProduct<F>& p, int64_t row, int64_t column) {
  F32x16 sum[kRows][kVectors];
  const F* a[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    a[r] = p.a[row + r];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] =
          p.keep == nullptr ? F32x16{} : p.keep[row + r] * load(p.c[row + r] + column + v * kLanes);
    }
  }
  const F* b = p.b + column;
  for (int64_t k = 0; k < p.inner; ++k, b += p.b_stride) {
    decltype(load_factors(b)) factors[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      factors[v] = load_factors(b + v * kLanes);
#ifdef __AVX512F__
      // Keeps it in a register: the compiler would read it again for every row.
      asm("" : "+v"(factors[v]));
#endif
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sum[r][v] = multiply_add(sum[r][v], a[r][k * p.a_step], factors[v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(p.c[row + r] + column + v * kLanes, sum[r][v]);
  }
}

template <class F, int kVectors>
void multiply_columns(const TileProduct<F>& p, int64_t column) {
  int64_t row = 0;
  for (; row + 4 <= p.rows; row += 4) multiply_block<F, 4, kVectors>(p, row, column);
  switch (p.rows - row) {
    case 3:
      return multiply_block<F, 3, kVectors>(p, row, column);
    case 2:
      return multiply_block<F, 2, kVectors>(p, row, column);
    case 1:
      return multiply_block<F, 1, kVectors>(p, row, column);
    default:
      return;
  }
}

/// Swaps the off-diagonal quarters of the block of 2 kHalf words that rows a and b cross.
template <size_t kHalf, size_t... kWords>
[[gnu::always_inline]] inline void swap_quarters(U32x16& a, U32x16& b,
                                                 std::index_sequence<kWords...>) {
  const U32x16 x = a;
  a = __builtin_shufflevector(x, b, ((kWords & kHalf) == 0 ? kWords : 16 + kWords - kHalf)...);
  b = __builtin_shufflevector(x, b, ((kWords & kHalf) == 0 ? kWords + kHalf : 16 + kWords)...);
}

/// Transposes 16 x 16 words: each stage swaps the off-diagonal quarters of blocks half the size.
template <size_t kHalf>
[[gnu::always_inline]] inline void transpose_stage(std::array<U32x16, 16>& x) {
#pragma GCC unroll 16
  for (size_t i = 0; i < 16; ++i) {
    if ((i & kHalf) == 0) {
      swap_quarters<kHalf>(x[i], x[i + kHalf], std::make_index_sequence<16>());
    }
  }
}

/// to[k][n] = from[n][k], k < 16, n < 16.
void transpose(Word* to, int64_t stride, const Word* const* from) {
  std::array<U32x16, 16> x;
#pragma GCC unroll 16
  for (size_t i = 0; i < 16; ++i) std::memcpy(&x[i], from[i], sizeof(U32x16));
  transpose_stage<8>(x);
  transpose_stage<4>(x);
  transpose_stage<2>(x);
  transpose_stage<1>(x);
#pragma GCC unroll 16
  for (size_t i = 0; i < 16; ++i) {
    std::memcpy(to + static_cast<int64_t>(i) * stride, &x[i], sizeof(U32x16));
  }
}

/// (a0, b0, a1, b1, ...), the first and the second half of it.
template <size_t... kWords>
[[gnu::always_inline]] inline std::pair<U16x32, U16x32> interleaved(
    U16x32 a, U16x32 b, std::index_sequence<kWords...>) {
  return {__builtin_shufflevector(a, b, (kWords / 2 + kWords % 2 * 32)...),
          __builtin_shufflevector(a, b, (16 + kWords / 2 + kWords % 2 * 32)...)};
}

/// One row of pairs from two rows of bf16.
void interleave(Word* to, const BF16* first, const BF16* second, int64_t width) {
  int64_t n = 0;
  for (; n + 32 <= width; n += 32) {
    U16x32 a;
    U16x32 b;
    std::memcpy(&a, first + n, sizeof(a));
    std::memcpy(&b, second + n, sizeof(b));
    const auto [x, y] = interleaved(a, b, std::make_index_sequence<32>());
    std::memcpy(to + n, &x, sizeof(x));
    std::memcpy(to + n + 16, &y, sizeof(y));
  }
  for (; n < width; ++n) to[n] = first[n].bits | uint32_t{second[n].bits} << 16;
}

[[gnu::always_inline]] inline void store_bf16(BF16* to, F32x16 x) {
#ifdef __AVX512BF16__
  const __m256bh half = _mm512_cvtneps_pbh(__m512(x));
  std::memcpy(&to->bits, &half, sizeof(half));
#else
  store(to, x);
#endif
}

}  // namespace

template <class F>
void multiply(const TileProduct<F>& p) {
  int64_t column = 0;
  for (; column + 4 * kLanes <= p.columns; column += 4 * kLanes) multiply_columns<F, 4>(p, column);
  switch ((p.columns - column) / kLanes) {
    case 3:
      return multiply_columns<F, 3>(p, column);
    case 2:
      return multiply_columns<F, 2>(p, column);
    case 1:
      return multiply_columns<F, 1>(p, column);
    default:
      return;
  }
}

template <class T>
void pack_columns(Factor<T>* panel, const T* const* x, int64_t count, int64_t width) {
  static constexpr std::array<uint32_t, kMaxWords> kZeros{};
  auto* to = reinterpret_cast<Word*>(panel);
  const int64_t words = width / kPerFactor<T>;
  for (int64_t n = 0; n < kPanel; n += kLanes) {
    const Word* rows[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      rows[i] = n + i < count ? reinterpret_cast<const Word*>(x[n + i]) : kZeros.data();
    }
    int64_t k = 0;
    for (; k + kLanes <= words; k += kLanes) {
      transpose(to + k * kPanel + n, kPanel, rows);
      for (const Word*& row : rows) row += kLanes;
    }
    for (; k < words; ++k) {
      for (int64_t i = 0; i < kLanes; ++i) to[k * kPanel + n + i] = *rows[i]++;
    }
  }
}

template <class T>
void pack_rows(Factor<T>* panel, const T* const* x, int64_t count, int64_t width) {
  const int64_t stride = (width + kLanes - 1) / kLanes * kLanes;
  if constexpr (std::is_same_v<T, float>) {
    for (int64_t k = 0; k < count; ++k) {
      std::copy_n(x[k], width, panel + k * stride);
      std::fill(panel + k * stride + width, panel + (k + 1) * stride, 0.0f);
    }
  } else {
    static constexpr std::array<BF16, kMaxWords> kZeros{};
    auto* to = reinterpret_cast<Word*>(panel);
    for (int64_t k = 0; k < count; k += 2, to += stride) {
      interleave(to, x[k], k + 1 < count ? x[k + 1] : kZeros.data(), width);
      std::fill(to + width, to + stride, 0u);
    }
  }
}

template <class T>
void to_factors(Factor<T>* row, const float* x, int64_t vectors) {
  auto* to = reinterpret_cast<T*>(row);
  for (int64_t v = 0; v < vectors; ++v) {
    if constexpr (std::is_same_v<T, float>) {
      store(to + v * kLanes, load(x + v * kLanes));
    } else {
      store_bf16(to + v * kLanes, load(x + v * kLanes));
    }
  }
}

template <class T>
void to_factors_of_two_rows(Factor<T>* out, const float* first, const float* second,
                            int64_t vectors) {
  for (int64_t v = 0; v < vectors; ++v) {
    const F32x16 a = load(first + v * kLanes);
    const F32x16 b = load(second + v * kLanes);
    if constexpr (std::is_same_v<T, float>) {
      store(out + v * kLanes, a);
      store(out + kPanel + v * kLanes, b);
    } else {
      BF16 rounded[2][kLanes];
      store_bf16(rounded[0], a);
      store_bf16(rounded[1], b);
      interleave(reinterpret_cast<Word*>(out) + v * kLanes, rounded[0], rounded[1], kLanes);
    }
  }
}

template void multiply<float>(const TileProduct<float>&);
template void multiply<BF16x2>(const TileProduct<BF16x2>&);
template void pack_columns<float>(float*, const float* const*, int64_t, int64_t);
template void pack_columns<BF16>(BF16x2*, const BF16* const*, int64_t, int64_t);
template void pack_rows<float>(float*, const float* const*, int64_t, int64_t);
template void pack_rows<BF16>(BF16x2*, const BF16* const*, int64_t, int64_t);
template void to_factors<float>(float*, const float*, int64_t);
template void to_factors<BF16>(BF16x2*, const float*, int64_t);
template void to_factors_of_two_rows<float>(float*, const float*, const float*, int64_t);
template void to_factors_of_two_rows<BF16>(BF16x2*, const float*, const float*, int64_t);

}  // namespace tessera::cpu
