#include "model/mlp.h"

#include "kernels/swiglu.h"
#include "model/token_region.h"

namespace tessera {

Mlp::Mlp(ParameterStore& store, const std::string& name, const Options& options,
         const RankPlace& place)
    : gate_up_(store, {.name = name + ".gate_up.weight",
                       // Gate rows above up rows: each rank has its share of both.
                       .shard = Shard::split({2 * options.intermediate, options.hidden}, 0,
                                             place.tensor, place.tensor_ranks, /*blocks=*/2),
                       .placement = Placement::kTensor,
                       .dtype = options.dtype,
                       .init = options.init_std}),
      down_(store, {.name = name + ".down.weight",
                    .shard = Shard::split({options.hidden, options.intermediate}, 1, place.tensor,
                                          place.tensor_ranks),
                    .placement = Placement::kTensor,
                    .dtype = options.dtype,
                    .init = options.out_init_std}),
      intermediate_(options.intermediate / place.tensor_ranks) {}

Mlp::Saved Mlp::forward(StepContext& step, ConstTensorView x, TensorView y) const {
  const ConstTensorView all = gather_tokens(step, x);
  const int64_t tokens = all.shape()[0];
  const TensorView gate_up =
      step.arena.allocate(x.dtype(), {tokens, 2 * intermediate_}, "mlp.gate_up");
  const Arena::Scope scratch(step.arena);
  const TensorView a = step.arena.allocate(x.dtype(), {tokens, intermediate_}, "mlp.activation");
  const TensorView partial = partial_of(step, y);
  gate_up_.forward(step, all, gate_up);
  swiglu_forward(step.stream, {.y = a, .gate_up = gate_up});
  down_.forward(step, a, partial);
  sum_partials(step, partial, y);
  return {.x = all, .gate_up = gate_up};
}

void Mlp::backward(StepContext& step, const Saved& saved, ConstTensorView dy, TensorView dx) const {
  const int64_t tokens = saved.x.shape()[0];
  const DType dtype = saved.x.dtype();
  const Arena::Scope scratch(step.arena);
  const TensorView a = step.arena.allocate(dtype, {tokens, intermediate_}, "mlp.activation");
  const TensorView da = step.arena.allocate(dtype, {tokens, intermediate_}, "mlp.dactivation");
  const TensorView dgate_up =
      step.arena.allocate(dtype, {tokens, 2 * intermediate_}, "mlp.dgate_up");
  const TensorView partial = partial_of(step, dx);
  const ConstTensorView all_dy = gather_tokens(step, dy);
  // The activation is cheaper to compute again than to keep.
  swiglu_forward(step.stream, {.y = a, .gate_up = saved.gate_up});
  down_.backward(step, a, all_dy, da);
  swiglu_backward(step.stream, {.dgate_up = dgate_up, .dy = da, .gate_up = saved.gate_up});
  gate_up_.backward(step, saved.x, dgate_up, partial);
  sum_partials(step, partial, dx);
}

}  // namespace tessera
