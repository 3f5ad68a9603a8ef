#pragma once

#include "kernels/core/tensor_view.h"

namespace tessera {

/// y[r, j] = silu(g[r, j]) * u[r, j] * row_weight[r], where gate_up[r] = (g[r], u[r]) side by side
/// and silu(x) = x * sigmoid(x). Source: Shazeer 2020, arXiv:2002.05202.
struct SwigluForward {
  TensorView y;                     ///< out [rows, dim], dtype of gate_up
  ConstTensorView gate_up;          ///< [rows, 2 * dim], f32 or bf16
  ConstTensorView row_weight = {};  ///< [rows], f32; optional (1): combine weight of an expert row
};
void swiglu_forward(Stream& stream, const SwigluForward& a);

/// With a[r] = silu(g[r]) * u[r] and dy[r] the gradient of the *weighted* y divided by the weight
/// (that is, W_down^T dy_t of moe equations, section "Experts and combine"):
///   drow_weight[r] = sum_j a[r, j] dy[r, j],   da = row_weight[r] * dy[r]   (da = dy unweighted)
///   du = da * silu(g),   dg = da * u * sigmoid(g) * (1 + g * (1 - sigmoid(g))).
struct SwigluBackward {
  TensorView dgate_up;              ///< out [rows, 2 * dim]; overwritten; may alias gate_up
  ConstTensorView dy;               ///< [rows, dim]
  ConstTensorView gate_up;          ///< as in forward
  ConstTensorView row_weight = {};  ///< as in forward
  TensorView drow_weight = {};      ///< out [rows], f32; overwritten; required with row_weight
  TensorView y = {};  ///< out [rows, dim]: the forward's y again (may alias dy); optional
};
void swiglu_backward(Stream& stream, const SwigluBackward& a);

namespace cpu {
void swiglu_forward(ThreadPool& threads, const SwigluForward& a);
void swiglu_backward(ThreadPool& threads, const SwigluBackward& a);
}  // namespace cpu
namespace gpu {
void swiglu_forward(Stream& stream, const SwigluForward& a);
void swiglu_backward(Stream& stream, const SwigluBackward& a);
}  // namespace gpu

}  // namespace tessera
