#pragma once

#include "kernels/core/tensor_view.h"

namespace tessera {

/// y[i] = log(1 + exp(x[i])), without overflow: keeps a learned width positive.
struct SoftplusForward {
  TensorView y;       ///< out [n], f32
  ConstTensorView x;  ///< [n], f32
};
void softplus_forward(Stream& stream, const SoftplusForward& a);

/// dx[i] += dy[i] * sigmoid(x[i]).
struct SoftplusBackward {
  TensorView dx;       ///< in and out [n], f32; added to
  ConstTensorView dy;  ///< [n], f32
  ConstTensorView x;   ///< [n], f32
};
void softplus_backward(Stream& stream, const SoftplusBackward& a);

namespace cpu {
void softplus_forward(ThreadPool& threads, const SoftplusForward& a);
void softplus_backward(ThreadPool& threads, const SoftplusBackward& a);
}  // namespace cpu
namespace gpu {
void softplus_forward(Stream& stream, const SoftplusForward& a);
void softplus_backward(Stream& stream, const SoftplusBackward& a);
}  // namespace gpu

}  // namespace tessera
