#pragma once

#include "kernels/core/dtype.h"

namespace tessera::cpu {

/// One product on the calling thread: C = op(A) op(B), or C += op(A) op(B). op(A) is [m, k],
/// op(B) is [k, n]; rows are `stride` elements apart in memory, so blocks of larger matrices do.
/// Products of f32 or bf16, accumulated in f32; a bf16 C is rounded once, after the addition.
/// Extents may be 0. The order of summation depends on the fields alone, not on the addresses.
struct BlockMatmul {
  void* c;        ///< out [m, n]; distinct from a and b
  const void* a;  ///< [m, k], or [k, m] with transpose_a
  const void* b;  ///< [k, n], or [n, k] with transpose_b
  int64_t m;
  int64_t n;
  int64_t k;
  int64_t c_stride;
  int64_t a_stride;
  int64_t b_stride;
  DType c_dtype;  ///< f32 or bf16
  DType dtype;    ///< of a and b: f32 or bf16
  bool transpose_a = false;
  bool transpose_b = false;
  bool accumulate = false;  ///< added to, not overwritten
};

/// Uses the processor's bf16 instructions where it has them (AVX-512 BF16 or AMX), and
/// block_matmul_in_f32 where not.
void block_matmul(const BlockMatmul& a);

/// The same function with bf16 operands widened to f32 first.
void block_matmul_in_f32(const BlockMatmul& a);

/// How many parts of at most `largest` an extent is cut into.
constexpr int64_t parts_of(int64_t extent, int64_t largest) {
  return (extent + largest - 1) / largest;
}

/// The size of parts of an extent > 0 that are at most `largest`, as equal as multiples of
/// `multiple` (which divides `largest`) can be; the last part may be shorter.
constexpr int64_t even_part(int64_t extent, int64_t largest, int64_t multiple) {
  const int64_t equal = parts_of(extent, parts_of(extent, largest));
  return parts_of(equal, multiple) * multiple;
}

}  // namespace tessera::cpu
