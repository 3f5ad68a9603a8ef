#pragma once

#include <type_traits>

#include "kernels/core/simd.h"

namespace tessera::cpu {

/// Two bf16 numbers that are neighbours along the summed axis; the first in the lower half. Rows of
/// BF16 may be read through it.
struct [[gnu::may_alias]] BF16x2 {
  uint32_t bits;
};

/// A factor of a product in memory: f32 one by one, bf16 in pairs.
template <class T>
using Factor = std::conditional_t<std::is_same_v<T, BF16>, BF16x2, float>;
/// Numbers per Factor<T>, along the summed axis.
template <class T>
inline constexpr int64_t kPerFactor = sizeof(Factor<T>) / sizeof(T);

/// Keys that attention works on at once, and columns of a packed panel.
inline constexpr int64_t kPanel = 64;

/// Rows of C, each at its own address:
///   C[r, n] = keep[r] C[r, n] + sum_k A[r, k] B[k, n],   without keep: C[r, n] = sum_k ...
/// A sum runs over k in ascending order (a pair is one step), starting from the kept value, so
/// that a row has the same bits in whatever company it is computed.
template <class F>
struct TileProduct {
  float* const* c;
  const float* keep;  ///< [rows] or nullptr
  const F* const* a;  ///< [rows]: A[r, k] is a[r][k * a_step]
  int64_t a_step;
  const F* b;  ///< [inner, columns] with rows b_stride apart
  int64_t b_stride;
  int64_t rows;
  int64_t inner;    ///< factors
  int64_t columns;  ///< a multiple of 16
};
template <class F>
void multiply(const TileProduct<F>& p);

/// B[k, n] = x[n][k]: `count` <= 64 rows of `width` <= 256 numbers become columns of a panel
/// [width / kPerFactor, 64]; the other columns are 0.
template <class T>
void pack_columns(Factor<T>* panel, const T* const* x, int64_t count, int64_t width);

/// B[k, n] = x[k][n]: `count` rows of `width` <= 256 numbers become rows of a panel
/// [count / kPerFactor rounded up, stride]; columns from `width` to `stride` are 0, and so is the
/// second half of an odd pair. `stride` is `width` rounded up to a multiple of 16.
template <class T>
void pack_rows(Factor<T>* panel, const T* const* x, int64_t count, int64_t width);

/// A[r, k] = x[r, k]: 16 `vectors` numbers of one row.
template <class T>
void to_factors(Factor<T>* row, const float* x, int64_t vectors);

/// The same of two rows that are neighbours along the summed axis: out[n] = (first[n], second[n]).
/// For f32 they are just copied, out[n] and out[64 + n].
template <class T>
void to_factors_of_two_rows(Factor<T>* out, const float* first, const float* second,
                            int64_t vectors);

}  // namespace tessera::cpu
