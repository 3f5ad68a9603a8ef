#pragma once

#include "kernels/int4_weights.h"

namespace tessera {

/// c = a W^T with weights in 4 bits, for few rows: those of one decoding step. One product, or one
/// per group e over the rows [offsets[e], offsets[e + 1]) as in GroupedMatmul:
///   c[rows] = a[rows] w[e]^T,   w as Int4Weights says, products accumulated in f32.
/// Each weight is read once for some rows; many rows are as right, and on a GPU slow. The CPU
/// rounds weights to bf16 where a group has more than 8 rows of bf16.
struct Int4Matmul {
  TensorView c;       ///< out [rows, n], f32 or bf16
  ConstTensorView a;  ///< [rows, k], f32 or bf16
  Int4Weights w;      ///< [groups, n, k]; one group without offsets
  /// [groups + 1], i32, ascending from 0; rows from offsets[groups] on are left as they are.
  /// Offsets that descend or leave the rows throw on the CPU; a GPU never leaves the rows.
  ConstTensorView offsets = {};
  bool accumulate = false;  ///< added to, not overwritten
};
void int4_matmul(Stream& stream, const Int4Matmul& a);

namespace cpu {
void int4_matmul(ThreadPool& threads, const Int4Matmul& a);
}
namespace gpu {
void int4_matmul(Stream& stream, const Int4Matmul& a);
}

}  // namespace tessera
