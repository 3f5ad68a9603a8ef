#pragma once

#include <span>

#include "kernels/core/tensor_view.h"

namespace tessera {

/// One AdamW step on one tensor, in f32, with g = gradient_scale * gradient and t counted from 1:
///   m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
///   master -= rate * (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon) + decay * master)
///   value = master, rounded to nearest even or as `rounding` says.
/// Source: Loshchilov & Hutter 2017, arXiv:1711.05101.
struct AdamW {
  /// How a value in bf16 is rounded. Stochastically: core/stochastic_rounding.h with bits of
  /// (seed, t, first_index + element), so that the value is a function of these and the master,
  /// whatever the device and however a parameter is cut into tensors. Parameters that are trained
  /// together have seeds or ranges of indices of their own.
  struct Rounding {
    bool stochastic = false;
    uint64_t seed = 0;
    int64_t first_index = 0;
  };

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
  Rounding rounding = {};
};
void adamw(Stream& stream, const AdamW& a);
/// All of them, as one by one; on the GPU many in one launch. They do not overlap.
void adamw(Stream& stream, std::span<const AdamW> tensors);

namespace cpu {
void adamw(ThreadPool& threads, const AdamW& a);
}
namespace gpu {
void adamw(Stream& stream, std::span<const AdamW> tensors);
}

}  // namespace tessera
