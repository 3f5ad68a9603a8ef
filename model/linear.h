#pragma once

#include <string>

#include "model/parameter.h"
#include "model/step_context.h"

namespace tessera {

/// y = x W^T, without bias. W is [out, in].
class Linear {
 public:
  Linear(ParameterStore& store, std::string name, int64_t out, int64_t in, DType dtype,
         double init_std);

  /// y [tokens, out] is overwritten; its dtype may be f32 whatever that of x.
  void forward(StepContext& step, ConstTensorView x, TensorView y) const;
  /// dx [tokens, in] is overwritten, or added to with `accumulate`; the weight's gradient is added
  /// to. x as in forward.
  void backward(StepContext& step, ConstTensorView x, ConstTensorView dy, TensorView dx,
                bool accumulate = false) const;

  int64_t out() const { return weight_->shard.whole[0]; }
  const Parameter& weight() const { return *weight_; }

 private:
  Parameter* weight_;
};

}  // namespace tessera
