#pragma once

#include "kernels/core/tensor_view.h"

namespace tessera {

/// x[i] = value. f32, bf16 or i32 (value is converted).
struct Fill {
  TensorView x;  ///< out, any shape
  float value;
};
void fill(Stream& stream, const Fill& a);

/// y[i] = x[i] in another float type, rounded to nearest even. Equal dtypes copy.
struct Cast {
  TensorView y;       ///< out, f32 or bf16
  ConstTensorView x;  ///< f32 or bf16, as many elements as y
};
void cast(Stream& stream, const Cast& a);

/// y[i] = a[i] + b[i], summed in f32. All of one dtype; y may alias a or b.
struct Add {
  TensorView y;
  ConstTensorView a;
  ConstTensorView b;
};
void add(Stream& stream, const Add& a);

/// y[i] += x[i], in f32: for sums of several tensors that are rounded once, at their end.
struct Accumulate {
  TensorView y;       ///< in and out, f32
  ConstTensorView x;  ///< f32 or bf16, the shape of y
};
void accumulate(Stream& stream, const Accumulate& a);

/// Gated attention output, y[i] = x[i] * sigmoid(g[i]). Source: arXiv:2505.06708.
struct SigmoidGateForward {
  TensorView y;       ///< out [tokens, dim]; may alias x
  ConstTensorView x;  ///< [tokens, dim], f32 or bf16
  ConstTensorView g;  ///< [tokens, dim], dtype of x
};
void sigmoid_gate_forward(Stream& stream, const SigmoidGateForward& a);

/// Gradient of sum(dy * sigmoid_gate_forward(x, g)).
struct SigmoidGateBackward {
  TensorView dx;       ///< out [tokens, dim]; overwritten; may alias dy
  TensorView dg;       ///< out [tokens, dim]; overwritten
  ConstTensorView dy;  ///< [tokens, dim]
  ConstTensorView x;   ///< as in forward
  ConstTensorView g;   ///< as in forward
};
void sigmoid_gate_backward(Stream& stream, const SigmoidGateBackward& a);

namespace cpu {
void fill(ThreadPool& threads, const Fill& a);
void cast(ThreadPool& threads, const Cast& a);
void add(ThreadPool& threads, const Add& a);
void accumulate(ThreadPool& threads, const Accumulate& a);
void sigmoid_gate_forward(ThreadPool& threads, const SigmoidGateForward& a);
void sigmoid_gate_backward(ThreadPool& threads, const SigmoidGateBackward& a);
}  // namespace cpu
namespace gpu {
void fill(Stream& stream, const Fill& a);
void cast(Stream& stream, const Cast& a);
void add(Stream& stream, const Add& a);
void accumulate(Stream& stream, const Accumulate& a);
void sigmoid_gate_forward(Stream& stream, const SigmoidGateForward& a);
void sigmoid_gate_backward(Stream& stream, const SigmoidGateBackward& a);
}  // namespace gpu

}  // namespace tessera
