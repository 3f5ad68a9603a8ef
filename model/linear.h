#pragma once

#include "model/parameter.h"
#include "model/step_context.h"

namespace tessera {

/// y = x W^T, without bias. W is [out, in]: this rank's shard of the parameter, as a matrix whose
/// columns are its last axis. A shard of `out` makes a column-parallel product, whose outputs are
/// this rank's own; a shard of `in` a row-parallel one, whose outputs are to be summed over ranks.
class Linear {
 public:
  /// Which rows of the local matrix are used; the others get no gradient.
  struct Rows {
    int64_t first = 0;
    int64_t count = -1;  ///< -1: all
  };

  Linear(ParameterStore& store, Parameter weight) : Linear(store, std::move(weight), Rows{}) {}
  Linear(ParameterStore& store, Parameter weight, Rows used);

  /// y [tokens, out] is overwritten, or added to with `accumulate`; it may be f32 whatever x is.
  void forward(StepContext& step, ConstTensorView x, TensorView y, bool accumulate = false) const;
  /// dx [tokens, in] is overwritten, or added to with `accumulate`; the weight's gradient is added
  /// to. x as in forward.
  void backward(StepContext& step, ConstTensorView x, ConstTensorView dy, TensorView dx,
                bool accumulate = false) const;

  /// Columns of y on this rank.
  int64_t out() const;

 private:
  template <class View>
  View used_rows(const View& matrix) const;

  Parameter* weight_;
  Rows rows_;
};

}  // namespace tessera
