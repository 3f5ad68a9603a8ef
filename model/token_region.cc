#include "model/token_region.h"

namespace tessera {

namespace {

Shape whole(StepContext& step, const ConstTensorView& share) {
  return share.shape().with(0, share.shape()[0] * step.mesh.size(Axis::kTensor));
}

}  // namespace

ConstTensorView gather_tokens(StepContext& step, ConstTensorView share) {
  Communicator& ranks = step.mesh.along(Axis::kTensor);
  if (ranks.size() == 1) return share;
  const TensorView all = step.arena.allocate(share.dtype(), whole(step, share), "region.tokens");
  ranks.all_gather(step.stream, share, all);
  return all;
}

TensorView partial_of(StepContext& step, TensorView share) {
  if (step.mesh.size(Axis::kTensor) == 1) return share;
  return step.arena.allocate(share.dtype(), whole(step, share), "region.partial");
}

void sum_partials(StepContext& step, TensorView partial, TensorView share) {
  Communicator& ranks = step.mesh.along(Axis::kTensor);
  if (ranks.size() > 1) ranks.reduce_scatter(step.stream, partial, share);
}

}  // namespace tessera
