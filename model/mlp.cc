#include "model/mlp.h"

#include "kernels/swiglu.h"

namespace tessera {

Mlp::Mlp(ParameterStore& store, const std::string& name, int64_t hidden, int64_t intermediate,
         DType dtype, double init_std, double out_init_std)
    : gate_up_(store, name + ".gate_up.weight", 2 * intermediate, hidden, dtype, init_std),
      down_(store, name + ".down.weight", hidden, intermediate, dtype, out_init_std),
      intermediate_(intermediate) {}

Mlp::Saved Mlp::forward(StepContext& step, ConstTensorView x, TensorView y) const {
  const int64_t tokens = x.shape()[0];
  const TensorView gate_up =
      step.arena.allocate(x.dtype(), {tokens, 2 * intermediate_}, "mlp.gate_up");
  const Arena::Scope scratch(step.arena);
  const TensorView a = step.arena.allocate(x.dtype(), {tokens, intermediate_}, "mlp.activation");
  gate_up_.forward(step, x, gate_up);
  swiglu_forward(step.stream, {.y = a, .gate_up = gate_up});
  down_.forward(step, a, y);
  return {.x = x, .gate_up = gate_up};
}

void Mlp::backward(StepContext& step, const Saved& saved, ConstTensorView dy, TensorView dx) const {
  const int64_t tokens = saved.x.shape()[0];
  const DType dtype = saved.x.dtype();
  const Arena::Scope scratch(step.arena);
  const TensorView a = step.arena.allocate(dtype, {tokens, intermediate_}, "mlp.activation");
  const TensorView da = step.arena.allocate(dtype, {tokens, intermediate_}, "mlp.dactivation");
  const TensorView dgate_up =
      step.arena.allocate(dtype, {tokens, 2 * intermediate_}, "mlp.dgate_up");
  // The activation is cheaper to compute again than to keep.
  swiglu_forward(step.stream, {.y = a, .gate_up = saved.gate_up});
  down_.backward(step, a, dy, da);
  swiglu_backward(step.stream, {.dgate_up = dgate_up, .dy = da, .gate_up = saved.gate_up});
  gate_up_.backward(step, saved.x, dgate_up, dx);
}

}  // namespace tessera
