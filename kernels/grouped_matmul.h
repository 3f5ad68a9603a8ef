#pragma once

#include "kernels/core/tensor_view.h"

namespace tessera {

/// One product per group e over the rows [offsets[e], offsets[e + 1]) of a and c:
///   c[rows] = a[rows] op(b[e]).   op(b[e]) is [k, n].
/// Rows from offsets[groups] on are left as they are. Offsets that descend or leave the rows
/// throw on the CPU; a GPU never leaves the rows.
struct GroupedMatmul {
  TensorView c;             ///< out [rows, n], f32 or bf16
  ConstTensorView a;        ///< [rows, k], f32 or bf16
  ConstTensorView b;        ///< [groups, k, n], or [groups, n, k] with transpose_b; dtype of a
  ConstTensorView offsets;  ///< [groups + 1], i32, ascending from 0; groups may be empty
  bool transpose_b = false;
};
void grouped_matmul(Stream& stream, const GroupedMatmul& a);

/// c[e] += a[rows of e]^T b[rows of e]. A group without rows adds exactly 0.
struct GroupedMatmulWeight {
  TensorView c;             ///< in and out [groups, n, k], f32; added to
  ConstTensorView a;        ///< [rows, n], f32 or bf16: gradient of the output
  ConstTensorView b;        ///< [rows, k], dtype of a: the input
  ConstTensorView offsets;  ///< as above
};
void grouped_matmul_weight(Stream& stream, const GroupedMatmulWeight& a);

namespace cpu {
void grouped_matmul(ThreadPool& threads, const GroupedMatmul& a);
void grouped_matmul_weight(ThreadPool& threads, const GroupedMatmulWeight& a);
}  // namespace cpu
namespace gpu {
void grouped_matmul(Stream& stream, const GroupedMatmul& a);
void grouped_matmul_weight(Stream& stream, const GroupedMatmulWeight& a);

/// The one place to go back to the kernels of sm_80 everywhere.
inline constexpr bool kGroupedMatmulBySm90 = true;
/// Whether the kernels for Hopper compute a call: on a GPU of compute capability 9.0, of bf16 with
/// k and n multiples of 8 and tensors aligned to 16 bytes.
bool sm90_takes(const Stream& stream, const GroupedMatmul& a);
bool sm90_takes(const Stream& stream, const GroupedMatmulWeight& a);
/// Of what sm90_takes.
void grouped_matmul_sm90(Stream& stream, const GroupedMatmul& a);
void grouped_matmul_weight_sm90(Stream& stream, const GroupedMatmulWeight& a);
/// The kernels for all GPUs, for tests and measurements to compare with.
void grouped_matmul_sm80(Stream& stream, const GroupedMatmul& a);
void grouped_matmul_weight_sm80(Stream& stream, const GroupedMatmulWeight& a);
}  // namespace gpu

}  // namespace tessera
