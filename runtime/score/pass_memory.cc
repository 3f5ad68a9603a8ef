#include "runtime/score/pass_memory.h"

#include "model/model.pb.h"
#include "model/single_rank.h"
#include "model/step_sums.h"

namespace tessera {

int64_t pass_memory(const ModelConfig& config, const PlannedPass& pass) {
  const Device device{DeviceKind::kPlan};
  Stream stream(device);
  ParameterStore store;
  const Transformer model(config, pass.dtype, Recompute::kNothing, store);
  store.allocate(device, pass.gradients);
  Arena arena(device, 0);
  StepSumsBuffer sums(device, model);
  SingleRank alone(model);
  Transformer::Run run = alone.run(stream, arena, pass.sparsity, sums.views());
  run.kept_of_layers = pass.kept_of_layers;
  run.mix = pass.mix;
  const Shape tokens{pass.sequences * pass.length};
  const Batch batch{.tokens = {nullptr, DType::kI32, tokens, device},
                    .targets = {nullptr, DType::kI32, tokens, device},
                    .starts = {nullptr, DType::kI32, {pass.segments + 1}, device},
                    .sequences = pass.sequences};
  const Shape logits{tokens[0], config.vocabulary()};
  model.logits(run, batch, TensorView(nullptr, DType::kF32, logits, device));
  if (pass.gradients) model.forward_backward(run, batch, 1);
  return arena.high_water();
}

}  // namespace tessera
