#pragma once

#include "kernels/core/tensor_view.h"

namespace tessera {

/// C = op(A) op(B), or C += op(A) op(B). Products of f32 or bf16, accumulated in f32.
/// op(A) is [m, k], op(B) is [k, n]; `transpose_x` says that x is stored the other way round,
/// so the three products of a linear layer y = x W^T, W [out, in], are
///   y  = {.c = y, .a = x, .b = W, .transpose_b = true}
///   dx = {.c = dx, .a = dy, .b = W}
///   dW = {.c = dW, .a = dy, .b = x, .transpose_a = true, .accumulate = true}.
/// The order of summation depends on the shapes alone.
struct Matmul {
  TensorView c;       ///< out [m, n], f32 or bf16
  ConstTensorView a;  ///< [m, k], or [k, m] with transpose_a; f32 or bf16
  ConstTensorView b;  ///< [k, n], or [n, k] with transpose_b; dtype of a
  bool transpose_a = false;
  bool transpose_b = false;
  bool accumulate = false;  ///< added to, not overwritten
};
void matmul(Stream& stream, const Matmul& a);

namespace cpu {
void matmul(ThreadPool& threads, const Matmul& a);
}
namespace gpu {
void matmul(Stream& stream, const Matmul& a);
}

}  // namespace tessera
