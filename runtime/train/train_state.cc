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

std::vector<TensorGroup> saved_groups(const AdamwOptimizer& optimizer,
                                      std::span<const NamedTensor> buffers) {
  const AdamwOptimizer::Owned& owned = optimizer.owned();
  return {{TensorKind::kParameter, owned.values},
          {TensorKind::kMaster, owned.masters},
          {TensorKind::kExpAvg, owned.m},
          {TensorKind::kExpAvgSq, owned.v},
          {TensorKind::kBuffer, buffers}};
}

StateContents describe_state(const ProcessMesh& mesh, TrainState& state,
                             const TrainConfig& config) {
  StateContents described;
  // Buffers are whole and the same on every rank.
  if (mesh.world().rank() == 0) described.buffers = named_parameters(state.store).buffers;
  CheckpointContents& contents = described.contents;
  contents.step = state.progress.step;
  contents.consumed_samples = state.progress.consumed_samples;
  contents.consumed_tokens = state.progress.consumed_tokens;
  contents.mesh = axes_of(mesh);
  contents.groups = saved_groups(state.optimizer, described.buffers);
  contents.blobs = {{kProgressBlob, to_text(state.progress)},
                    {kGuardBlob, state.guard.state()},
                    {kTokenizerBlob, state.tokenizer_model}};
  for (const auto& hook : state.hooks) contents.blobs[hook_blob(*hook)] = hook->state();
  contents.resolved_config = to_text(config);
  return described;
}

void load_state(const CheckpointReader& reader, const ProcessMesh& mesh, const TrainConfig& config,
                TrainState& state) {
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
  const CheckpointFacts& facts = reader.facts();
  state.proof.reset();
  if (facts.next_step_digest) {
    state.proof = {.step = facts.id.step + 1,
                   .digest = *facts.next_step_digest,
                   .same_mesh = facts.mesh == axes_of(mesh),
                   .same_config = reader.read_blob(kConfigBlob) == to_text(config)};
  }
}

}  // namespace tessera
