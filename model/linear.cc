#include "model/linear.h"

#include <utility>

#include "kernels/matmul.h"

namespace tessera {

Linear::Linear(ParameterStore& store, std::string name, int64_t out, int64_t in, DType dtype,
               double init_std)
    : weight_(&store.declare({.name = std::move(name),
                              .shard = Shard::replicated({out, in}),
                              .dtype = dtype,
                              .init = init_std})) {}

void Linear::forward(StepContext& step, ConstTensorView x, TensorView y) const {
  matmul(step.stream, {.c = y, .a = x, .b = weight_->value, .transpose_b = true});
}

void Linear::backward(StepContext& step, ConstTensorView x, ConstTensorView dy, TensorView dx,
                      bool accumulate) const {
  matmul(step.stream,
         {.c = weight_->grad, .a = dy, .b = x, .transpose_a = true, .accumulate = true});
  matmul(step.stream, {.c = dx, .a = dy, .b = weight_->value, .accumulate = accumulate});
}

}  // namespace tessera
