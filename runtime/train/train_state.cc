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

std::vector<MeshAxis> axes_of(const ProcessMesh& mesh) {
  std::vector<MeshAxis> axes;
  for (int axis = 0; axis < kAxes; ++axis) {
    axes.push_back({name_of(static_cast<Axis>(axis)), mesh.size(static_cast<Axis>(axis))});
  }
  return axes;
}

}  // namespace

NamedParameters named_parameters(ParameterStore& store) {
  NamedParameters named;
  for (const Parameter& parameter : store.all()) {
    auto& tensors = parameter.trained ? named.trained : named.buffers;
    for (NamedTensor& part : named_parts(parameter.name, parameter.shard, parameter.value)) {
      tensors.push_back(std::move(part));
    }
  }
  return named;
}

void load_parameters(const CheckpointReader& reader, ParameterStore& store) {
  const NamedParameters named = named_parameters(store);
  reader.read(TensorKind::kParameter, named.trained);
  reader.read(TensorKind::kBuffer, named.buffers);
}

SaveReport save_state(const ProcessMesh& mesh, CheckpointStore* checkpoints, TrainState& state,
                      const TrainConfig& config) {
  const AdamwOptimizer::Owned& owned = state.optimizer.owned();
  const std::vector<NamedTensor> buffers = named_parameters(state.store).buffers;
  CheckpointContents contents;
  contents.step = state.progress.step;
  contents.consumed_samples = state.progress.consumed_samples;
  contents.consumed_tokens = state.progress.consumed_tokens;
  contents.mesh = axes_of(mesh);
  contents.groups = {{TensorKind::kParameter, owned.values},
                     {TensorKind::kMaster, owned.masters},
                     {TensorKind::kExpAvg, owned.m},
                     {TensorKind::kExpAvgSq, owned.v}};
  // Buffers are whole and the same on every rank.
  if (mesh.world().rank() == 0) contents.groups.push_back({TensorKind::kBuffer, buffers});
  contents.blobs = {{kProgressBlob, to_text(state.progress)},
                    {kGuardBlob, state.guard.state()},
                    {kTokenizerBlob, state.tokenizer_model}};
  for (const auto& hook : state.hooks) contents.blobs[hook_blob(*hook)] = hook->state();
  contents.resolved_config = to_text(config);
  return save_together(mesh.world(), checkpoints, contents);
}

void load_state(const CheckpointReader& reader, TrainState& state) {
  load_parameters(reader, state.store);
  const AdamwOptimizer::Owned& owned = state.optimizer.owned();
  reader.read(TensorKind::kMaster, owned.masters);
  reader.read(TensorKind::kExpAvg, owned.m);
  reader.read(TensorKind::kExpAvgSq, owned.v);
  state.progress = parse_progress(reader.read_blob(kProgressBlob));
  state.guard.restore(reader.read_blob(kGuardBlob));
  for (const auto& hook : state.hooks) {
    if (reader.contains_blob(hook_blob(*hook))) hook->restore(reader.read_blob(hook_blob(*hook)));
  }
}

}  // namespace tessera
