#include "runtime/train/train_state.h"

#include "runtime/config/text_writer.h"
#include "runtime/config/train.pb.h"

namespace tessera {

namespace {

constexpr const char* kProgressBlob = "progress";
constexpr const char* kGuardBlob = "spike_guard";

std::string hook_blob(const Hook& hook) {
  return "hook/" + hook.name();
}

struct OptimizerTensors {
  std::vector<NamedTensor> masters;
  std::vector<NamedTensor> m;
  std::vector<NamedTensor> v;
};

OptimizerTensors optimizer_tensors(const TrainState& state) {
  OptimizerTensors tensors;
  const std::vector<AdamwOptimizer::State>& all = state.optimizer.state();
  for (const AdamwOptimizer::State& one : all) {
    // A value in f32 is its own master, and is saved as the parameter.
    const Parameter& parameter = state.store.find(one.master.name);
    if (parameter.dtype != DType::kF32) tensors.masters.push_back(one.master);
    tensors.m.push_back(one.m);
    tensors.v.push_back(one.v);
  }
  return tensors;
}

}  // namespace

NamedParameters named_parameters(ParameterStore& store) {
  NamedParameters named;
  for (const Parameter& parameter : store.all()) {
    (parameter.trained ? named.trained : named.buffers)
        .emplace_back(parameter.name, parameter.shard, parameter.value);
  }
  return named;
}

void load_parameters(const CheckpointReader& reader, ParameterStore& store) {
  const NamedParameters named = named_parameters(store);
  reader.read(TensorKind::kParameter, named.trained);
  reader.read(TensorKind::kBuffer, named.buffers);
}

SaveReport save_state(CheckpointStore& checkpoints, TrainState& state, const TrainConfig& config,
                      const std::vector<MeshAxis>& mesh) {
  const NamedParameters named = named_parameters(state.store);
  const OptimizerTensors optimizer = optimizer_tensors(state);
  CheckpointContents contents;
  contents.step = state.progress.step;
  contents.consumed_samples = state.progress.consumed_samples;
  contents.consumed_tokens = state.progress.consumed_tokens;
  contents.mesh = mesh;
  contents.groups = {{TensorKind::kParameter, named.trained},
                     {TensorKind::kBuffer, named.buffers},
                     {TensorKind::kMaster, optimizer.masters},
                     {TensorKind::kExpAvg, optimizer.m},
                     {TensorKind::kExpAvgSq, optimizer.v}};
  contents.blobs = {{kProgressBlob, to_text(state.progress)},
                    {kGuardBlob, state.guard.state()},
                    {kTokenizerBlob, state.tokenizer_model}};
  for (const auto& hook : state.hooks) contents.blobs[hook_blob(*hook)] = hook->state();
  contents.resolved_config = to_text(config);
  return checkpoints.save(contents);
}

void load_state(const CheckpointReader& reader, TrainState& state) {
  load_parameters(reader, state.store);
  const OptimizerTensors optimizer = optimizer_tensors(state);
  reader.read(TensorKind::kMaster, optimizer.masters);
  reader.read(TensorKind::kExpAvg, optimizer.m);
  reader.read(TensorKind::kExpAvgSq, optimizer.v);
  state.progress = parse_progress(reader.read_blob(kProgressBlob));
  state.guard.restore(reader.read_blob(kGuardBlob));
  for (const auto& hook : state.hooks) {
    if (reader.contains_blob(hook_blob(*hook))) hook->restore(reader.read_blob(hook_blob(*hook)));
  }
}

}  // namespace tessera
