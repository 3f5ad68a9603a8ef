#pragma once

#include <string>

#include "model/linear.h"
#include "model/rank_place.h"

namespace tessera {

/// Dense feed-forward layer: y = W_down (silu(g) * u), (g, u) = W_gate_up x. Each tensor rank has
/// an equal share of the intermediate columns and of the tokens outside.
class Mlp {
 public:
  struct Options {
    int64_t hidden;
    int64_t intermediate;  ///< a multiple of the tensor ranks
    DType dtype;
    double init_std;
    double out_init_std;
  };

  /// `name` is the prefix of the parameters, e.g. "layers.0.mlp".
  Mlp(ParameterStore& store, const std::string& name, const Options& options,
      const RankPlace& place);

  struct Saved {
    ConstTensorView x;        ///< [all tokens, hidden]
    ConstTensorView gate_up;  ///< [all tokens, 2 * intermediate here]
  };

  /// x and y [tokens, hidden]: this tensor rank's tokens; y is overwritten.
  [[nodiscard]] Saved forward(StepContext& step, ConstTensorView x, TensorView y) const;
  /// dx [tokens, hidden] is overwritten.
  void backward(StepContext& step, const Saved& saved, ConstTensorView dy, TensorView dx) const;

 private:
  Linear gate_up_;
  Linear down_;
  int64_t intermediate_;  ///< of this rank
};

}  // namespace tessera
