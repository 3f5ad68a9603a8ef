#pragma once

#include <string>

#include "model/linear.h"

namespace tessera {

/// Dense feed-forward layer: y = W_down (silu(g) * u), (g, u) = W_gate_up x.
class Mlp {
 public:
  /// `name` is the prefix of the parameters, e.g. "layers.0.mlp".
  Mlp(ParameterStore& store, const std::string& name, int64_t hidden, int64_t intermediate,
      DType dtype, double init_std, double out_init_std);

  struct Saved {
    ConstTensorView x;        ///< [tokens, hidden]
    ConstTensorView gate_up;  ///< [tokens, 2 * intermediate]
  };

  /// y [tokens, hidden] is overwritten.
  [[nodiscard]] Saved forward(StepContext& step, ConstTensorView x, TensorView y) const;
  /// dx [tokens, hidden] is overwritten.
  void backward(StepContext& step, const Saved& saved, ConstTensorView dy, TensorView dx) const;

 private:
  Linear gate_up_;
  Linear down_;
  int64_t intermediate_;
};

}  // namespace tessera
