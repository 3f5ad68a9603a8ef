#include "runtime/train/train_state.h"

#include <map>

#include "checkpoint/file_hash.h"
#include "checkpoint/shared_load.h"
#include "parallel/agreement.h"
#include "runtime/config/text_writer.h"
#include "runtime/config/train.pb.h"

namespace tessera {

namespace {

constexpr const char* kProgressBlob = "progress";
constexpr const char* kGuardBlob = "spike_guard";
constexpr const char* kQualityBlob = "quality_guard";

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

// What the run needs of the blobs, read by rank 0 alone, on every rank.
std::map<std::string, std::string> blobs_of_rank_0(Communicator& world,
                                                   const CheckpointReader& reader) {
  std::vector<std::string> names = reader.blob_names();
  std::erase(names, kConfigBlob);
  std::erase(names, kTokenizerBlob);
  std::map<std::string, std::string> blobs;
  const std::optional<Failure> failure =
      first_failure(world, failure_of([&] {
                      for (const std::string name : {kProgressBlob, kGuardBlob}) {
                        if (reader.contains_blob(name)) continue;
                        throw Error(ExitCode::kBadData,
                                    concat(reader.directory().string(), " holds no blob ", name));
                      }
                      if (world.rank() != 0) return;
                      for (const std::string& name : names) blobs[name] = reader.read_blob(name);
                    }));
  if (failure) throw Error(failure->code, to_text(*failure, world));
  for (const std::string& name : names) blobs[name] = broadcast_text(world, blobs[name], 0);
  return blobs;
}

}  // namespace

std::optional<RunProgress> saved_progress(const CheckpointReader& reader) {
  if (!reader.contains_blob(kProgressBlob)) return std::nullopt;
  return parse_progress(reader.read_blob(kProgressBlob));
}

std::map<std::string, std::string> state_blobs(const RunProgress& progress, const SpikeGuard& guard,
                                               const std::string& tokenizer_model) {
  return {{kProgressBlob, to_text(progress)},
          {kGuardBlob, guard.state()},
          {kTokenizerBlob, tokenizer_model}};
}

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
  contents.consumed_samples = state.progress.data.samples;
  contents.consumed_tokens = state.progress.consumed_tokens;
  contents.mesh = axes_of(mesh);
  contents.groups = saved_groups(state.optimizer, described.buffers);
  contents.blobs = state_blobs(state.progress, state.guard, state.tokenizer_model);
  if (state.quality) contents.blobs[kQualityBlob] = state.quality->state();
  for (const auto& hook : state.hooks) contents.blobs[hook_blob(*hook)] = hook->state();
  contents.resolved_config = to_text(config);
  return described;
}

int64_t load_state(const CheckpointReader& reader, const ProcessMesh& mesh, Stream& stream,
                   const TrainConfig& config, TrainState& state) {
  const NamedParameters named = named_parameters(state.store);
  std::vector<TensorGroup> groups = saved_groups(state.optimizer, named.buffers);
  groups.front().tensors = named.trained;  // saved by their owners, held by many
  std::vector<NamedTensor> own_buffers;
  if (mesh.world().rank() == 0) own_buffers = named.buffers;
  const int64_t bytes = load_together(mesh.world(), stream, reader, groups,
                                      saved_groups(state.optimizer, own_buffers));

  const std::map<std::string, std::string> blobs = blobs_of_rank_0(mesh.world(), reader);
  state.progress = parse_progress(blobs.at(kProgressBlob));
  state.guard.restore(blobs.at(kGuardBlob));
  const auto quality = blobs.find(kQualityBlob);  // checkpoints of older versions have none
  if (state.quality && quality != blobs.end()) state.quality->restore(quality->second);
  for (const auto& hook : state.hooks) {
    const auto blob = blobs.find(hook_blob(*hook));
    if (blob != blobs.end()) hook->restore(blob->second);
  }
  const CheckpointFacts& facts = reader.facts();
  state.proof.reset();
  if (facts.next_step_digest) {
    state.proof = {.step = facts.id.step + 1,
                   .digest = *facts.next_step_digest,
                   .same_mesh = facts.mesh == axes_of(mesh),
                   .same_config = facts.config_hash == hash128(bytes_of(to_text(config)))};
  }
  return bytes;
}

}  // namespace tessera
