#pragma once

#include "kernels/core/tensor_view.h"

namespace tessera {

/// One AdamW step on one tensor, in f32, with g = gradient_scale * gradient and t counted from 1:
///   m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
///   master -= rate * (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon) + decay * master)
///   value = master, rounded to nearest even.
/// Source: Loshchilov & Hutter 2017, arXiv:1711.05101.
struct AdamW {
  TensorView value;          ///< out, f32 or bf16
  TensorView master;         ///< in and out, f32; may alias a value in f32
  TensorView m;              ///< in and out, f32
  TensorView v;              ///< in and out, f32
  ConstTensorView gradient;  ///< f32
  int64_t step;              ///< t, counts from 1
  float rate;
  float beta1;
  float beta2;
  float epsilon;
  float decay;
  float gradient_scale;
};
void adamw(Stream& stream, const AdamW& a);

namespace cpu {
void adamw(ThreadPool& threads, const AdamW& a);
}

}  // namespace tessera
