#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/reader.h"
#include "model/parameter.h"
#include "runtime/train/adamw_optimizer.h"
#include "runtime/train/hook.h"
#include "runtime/train/progress.h"
#include "runtime/train/quality_guard.h"
#include "runtime/train/spike_guard.h"

namespace tessera {

class TrainConfig;

/// What the first step after a resume must come to.
struct ResumeProof {
  int64_t step = 0;
  uint64_t digest = 0;  ///< of its parameters, in the run that saved
  bool same_mesh = false;
  bool same_config = false;
};

/// Everything that a step changes: what a checkpoint holds.
struct TrainState {
  ParameterStore& store;
  AdamwOptimizer& optimizer;
  SpikeGuard guard;
  RunProgress progress;
  std::vector<std::unique_ptr<Hook>> hooks;
  std::string tokenizer_model;  ///< Tokenizer::model(): saved, so that text can be sampled
  std::optional<ResumeProof> proof = {};  ///< of a resumed run, until its first step is done
  std::optional<QualityGuard> quality = {};
};

/// The blob of a checkpoint that holds TrainState::tokenizer_model.
inline constexpr const char* kTokenizerBlob = "tokenizer.model";

/// How far the run had come that saved a checkpoint; nothing when it is not a run's. Throws
/// Error(kBadData) when it is damaged.
std::optional<RunProgress> saved_progress(const CheckpointReader& reader);

/// What a checkpoint holds of a run besides tensors, configuration and hooks, by name of the blob.
std::map<std::string, std::string> state_blobs(const RunProgress& progress, const SpikeGuard& guard,
                                               const std::string& tokenizer_model);

/// The parameters of a model as a checkpoint names them: trained ones, and buffers apart.
struct NamedParameters {
  std::vector<NamedTensor> trained;
  std::vector<NamedTensor> buffers;
};
NamedParameters named_parameters(ParameterStore& store);

/// The tensors that a rank saves: what it owns of parameters and optimizer state, and, on rank 0,
/// the buffers.
std::vector<TensorGroup> saved_groups(const AdamwOptimizer& optimizer,
                                      std::span<const NamedTensor> buffers);

/// What this rank saves of `state`: what it owns of the parameters and of the optimizer's state.
/// The contents point into `state` and into `buffers`.
struct StateContents {
  std::vector<NamedTensor> buffers;
  CheckpointContents contents;
};
StateContents describe_state(const ProcessMesh& mesh, TrainState& state, const TrainConfig& config);

/// Fills `state` on every rank so that the run goes on as if it had never stopped, whatever mesh
/// has saved it. Tensors as load_together(), the rest from rank 0. Collective: when a rank fails,
/// every rank throws. Returns the bytes that this rank has read.
int64_t load_state(const CheckpointReader& reader, const ProcessMesh& mesh, Stream& stream,
                   const TrainConfig& config, TrainState& state);

}  // namespace tessera
