#include "model/norm.h"

#include <utility>

#include "kernels/rms_norm.h"

namespace tessera {

Norm::Norm(ParameterStore& store, std::string name, int64_t dim, DType dtype, float epsilon)
    : weight_(&store.declare({.name = std::move(name),
                              .shard = Shard::replicated({dim}),
                              .dtype = dtype,
                              .initializer = Initializer::kConstant,
                              .init = 1,
                              .decay = false})),
      epsilon_(epsilon) {}

Norm::Output Norm::forward(StepContext& step, ConstTensorView x) const {
  const TensorView y = step.arena.allocate(x.dtype(), x.shape(), "norm.y");
  const TensorView rstd = step.arena.allocate(DType::kF32, {x.shape()[0]}, "norm.rstd");
  rms_norm_forward(step.stream,
                   {.y = y, .rstd = rstd, .x = x, .weight = weight_->value, .epsilon = epsilon_});
  return {.y = y, .saved = {.h = x, .rstd = rstd}};
}

Norm::Output Norm::forward_sum(StepContext& step, TensorView x, ConstTensorView residual) const {
  const TensorView y = step.arena.allocate(x.dtype(), x.shape(), "norm.y");
  const TensorView rstd = step.arena.allocate(DType::kF32, {x.shape()[0]}, "norm.rstd");
  rms_norm_forward(step.stream, {.y = y,
                                 .rstd = rstd,
                                 .x = x,
                                 .weight = weight_->value,
                                 .epsilon = epsilon_,
                                 .residual = residual,
                                 .h = x});
  return {.y = y, .saved = {.h = x, .rstd = rstd}};
}

void Norm::backward(StepContext& step, const Saved& saved, ConstTensorView dy, TensorView dh,
                    ConstTensorView dresidual) const {
  rms_norm_backward(step.stream, {.dh = dh,
                                  .dweight = weight_->grad,
                                  .dy = dy,
                                  .h = saved.h,
                                  .weight = weight_->value,
                                  .rstd = saved.rstd,
                                  .dresidual = dresidual});
}

}  // namespace tessera
