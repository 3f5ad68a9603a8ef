#pragma once

#include "kernels/core/tensor_view.h"

namespace tessera {

/// RMSNorm over the last axis, optionally of a sum:
///   h[t, d] = x[t, d] + residual[t, d]                 (h = x without residual)
///   y[t, d] = h[t, d] * rstd[t] * weight[d],  rstd[t] = 1 / sqrt(mean_d(h[t, d]^2) + epsilon).
/// h is rounded to its dtype before it is normalised, so that backward sees the same numbers.
/// Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.
struct RmsNormForward {
  TensorView y;            ///< out [tokens, dim], dtype of x; may alias x when h is given or absent
  TensorView rstd;         ///< out [tokens], f32; keep for backward
  ConstTensorView x;       ///< [tokens, dim], f32 or bf16
  ConstTensorView weight;  ///< [dim], dtype of x
  float epsilon;           ///< > 0
  ConstTensorView residual = {};  ///< [tokens, dim], dtype of x; optional
  TensorView h = {};  ///< out [tokens, dim]; required with residual; may alias x or residual
};
void rms_norm_forward(Stream& stream, const RmsNormForward& a);

/// Largest dim of rms_norm_backward.
inline constexpr int64_t kRmsNormMaxDim = 65536;

/// Gradient of sum(dy * y) with respect to h and weight; with `dresidual`, of sum(dy * y) +
/// sum(dresidual * h): the gradient that reaches h by the residual path is added in.
struct RmsNormBackward {
  TensorView dh;                   ///< out [tokens, dim]; overwritten; may alias dy or dresidual
  TensorView dweight;              ///< out [dim], f32; added to
  ConstTensorView dy;              ///< [tokens, dim]
  ConstTensorView h;               ///< [tokens, dim], as in forward
  ConstTensorView weight;          ///< [dim], as in forward
  ConstTensorView rstd;            ///< [tokens], from forward
  ConstTensorView dresidual = {};  ///< [tokens, dim]; optional
};
void rms_norm_backward(Stream& stream, const RmsNormBackward& a);

namespace cpu {
void rms_norm_forward(ThreadPool& threads, const RmsNormForward& a);
void rms_norm_backward(ThreadPool& threads, const RmsNormBackward& a);
}  // namespace cpu
namespace gpu {
void rms_norm_forward(Stream& stream, const RmsNormForward& a);
void rms_norm_backward(Stream& stream, const RmsNormBackward& a);
}  // namespace gpu

}  // namespace tessera
