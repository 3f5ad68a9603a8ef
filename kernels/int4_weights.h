#pragma once

#include "kernels/core/tensor_view.h"

namespace tessera {

/// Matrices [groups, n, k] in 4 bits: 64 numbers of a row in turn, a *run*, share a scale s and an
/// offset m,
///   w = s (q - 8) + m,   q in 0 .. 15,
/// so a weight takes 4.5 bits. In memory byte 4 a + b of a run, a = 0 .. 7 and b = 0 .. 3, has in
/// its lower half the q of number 4 a + {0, 2, 1, 3}[b], in its upper half that of the number 32
/// behind it: so a word of 32 bits, shifted and masked, has neighbours 16 bits apart, as pairs of
/// bf16 want them.
struct Int4Weights {
  static constexpr int64_t kRun = 64;

  ConstTensorView codes;   ///< [groups, n, k / 2], u8
  ConstTensorView scales;  ///< [groups, n, k / 64, 2], bf16: s and m of each run

  bool empty() const { return codes.empty(); }
  int64_t groups() const { return codes.shape()[0]; }
  int64_t n() const { return codes.shape()[1]; }
  int64_t k() const { return codes.shape()[2] * 2; }
  /// Rows [first, first + count) of the only group.
  Int4Weights rows(int64_t first, int64_t count) const;
};

/// Which number of a run the lower half of byte `byte` of it has, 0 <= byte < 32.
constexpr int64_t int4_number(int64_t byte) {
  constexpr int64_t kOrder[4] = {0, 2, 1, 3};
  return byte / 4 * 4 + kOrder[byte % 4];
}

/// Throws unless codes and scales have the shapes of matrices [groups, n, k]. `who` begins the
/// sentence.
void check_int4(const Int4Weights& w, int64_t groups, int64_t n, int64_t k, const char* who);

/// Chooses scales, offsets and codes of weights, for a small sum of squared errors in each run: of
/// ranges from the whole down to two thirds of it, each also with the scale and offset that fit its
/// codes best, the one with the least. A run that has a number that is not finite gets the offset
/// NaN. On the CPU only: weights are quantised once, by the host.
struct QuantizeInt4 {
  TensorView codes;   ///< out [groups, n, k / 2], u8
  TensorView scales;  ///< out [groups, n, k / 64, 2], bf16
  ConstTensorView w;  ///< [groups, n, k], f32 or bf16; k is a multiple of 64
};
void quantize_int4(Stream& stream, const QuantizeInt4& a);

}  // namespace tessera
