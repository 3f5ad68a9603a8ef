#pragma once

#include "kernels/core/simd.h"
#include "kernels/gate_score.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace tessera {

/// Scores of sixteen tokens at once, for gate_score.h: CPU only.
template <>
struct GateNumber<F32x16> {
  using Bits = U32x16;
  [[gnu::always_inline]] static F32x16 fused(F32x16 a, F32x16 b, F32x16 c) {
#if defined(__AVX512F__)
    return std::bit_cast<F32x16>(_mm512_fmadd_ps(std::bit_cast<__m512>(a), std::bit_cast<__m512>(b),
                                                 std::bit_cast<__m512>(c)));
#else
    F32x16 sum;
    for (int lane = 0; lane < kLanes; ++lane) sum[lane] = std::fma(a[lane], b[lane], c[lane]);
    return sum;
#endif
  }
};

}  // namespace tessera
