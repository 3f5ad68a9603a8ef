#include "model/linear.h"

#include <utility>

#include "kernels/int4_matmul.h"
#include "kernels/matmul.h"

namespace tessera {

namespace {

Parameter in_products(Parameter weight) {
  weight.in_products = true;
  return weight;
}

}  // namespace

Linear::Linear(ParameterStore& store, Parameter weight, Rows used)
    : weight_(&store.declare(in_products(std::move(weight)))), rows_(used) {}

int64_t Linear::out() const {
  const Shape local = weight_->shard.local();
  return rows_.count >= 0 ? rows_.count : local.elements() / local[-1];
}

template <class View>
View Linear::used_rows(const View& matrix) const {
  const int64_t in = matrix.shape()[-1];
  const View all = matrix.reshape({matrix.elements() / in, in});
  return rows_.count >= 0 ? all.rows(rows_.first, rows_.count) : all;
}

void Linear::forward(StepContext& step, ConstTensorView x, TensorView y, bool accumulate) const {
  if (const Int4Weights all = weight_->int4(); !all.empty()) {
    const Int4Weights used = rows_.count >= 0 ? all.rows(rows_.first, rows_.count) : all;
    int4_matmul(step.stream, {.c = y, .a = x, .w = used, .accumulate = accumulate});
    return;
  }
  matmul(step.stream, {.c = y,
                       .a = x,
                       .b = used_rows(weight_->value),
                       .transpose_b = true,
                       .accumulate = accumulate});
}

void Linear::backward(StepContext& step, ConstTensorView x, ConstTensorView dy, TensorView dx,
                      bool accumulate) const {
  matmul(step.stream,
         {.c = used_rows(weight_->grad), .a = dy, .b = x, .transpose_a = true, .accumulate = true});
  matmul(step.stream, {.c = dx, .a = dy, .b = used_rows(weight_->value), .accumulate = accumulate});
}

}  // namespace tessera
