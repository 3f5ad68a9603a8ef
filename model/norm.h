#pragma once

#include <string>

#include "model/parameter.h"
#include "model/step_context.h"

namespace tessera {

/// RMSNorm of the last axis, by itself or of a sum (kernels/rms_norm.h).
class Norm {
 public:
  Norm(ParameterStore& store, std::string name, int64_t dim, DType dtype, float epsilon);

  struct Saved {
    ConstTensorView h;     ///< what was normalised, [tokens, dim]
    ConstTensorView rstd;  ///< [tokens], f32
  };
  struct Output {
    TensorView y;
    Saved saved;
  };

  /// y = norm(x).
  [[nodiscard]] Output forward(StepContext& step, ConstTensorView x) const;
  /// h = x + residual, written over x; y = norm(h).
  [[nodiscard]] Output forward_sum(StepContext& step, TensorView x, ConstTensorView residual) const;
  /// dh is overwritten; `dresidual`, when given, is added in.
  void backward(StepContext& step, const Saved& saved, ConstTensorView dy, TensorView dh,
                ConstTensorView dresidual = {}) const;

 private:
  Parameter* weight_;
  float epsilon_;
};

}  // namespace tessera
