#pragma once

#include <memory>
#include <string>
#include <vector>

#include "checkpoint/shared_save.h"
#include "model/parameter.h"
#include "runtime/train/adamw_optimizer.h"
#include "runtime/train/hook.h"
#include "runtime/train/progress.h"
#include "runtime/train/spike_guard.h"

namespace tessera {

class TrainConfig;

/// Everything that a step changes: what a checkpoint holds.
struct TrainState {
  ParameterStore& store;
  AdamwOptimizer& optimizer;
  SpikeGuard guard;
  RunProgress progress;
  std::vector<std::unique_ptr<Hook>> hooks;
  std::string tokenizer_model;  ///< Tokenizer::model(): saved, so that text can be sampled
};

/// The blob of a checkpoint that holds TrainState::tokenizer_model.
inline constexpr const char* kTokenizerBlob = "tokenizer.model";

/// The parameters of a model as a checkpoint names them: trained ones, and buffers apart.
struct NamedParameters {
  std::vector<NamedTensor> trained;
  std::vector<NamedTensor> buffers;
};
NamedParameters named_parameters(ParameterStore& store);

/// Reads the parameters alone, for inference.
void load_parameters(const CheckpointReader& reader, ParameterStore& store);

/// Saves what each rank owns (save_together()); `checkpoints` is rank 0's, nullptr elsewhere.
/// Collective over the world of `mesh`, which is also recorded.
SaveReport save_state(const ProcessMesh& mesh, CheckpointStore* checkpoints, TrainState& state,
                      const TrainConfig& config);

/// Fills this rank's `state` so that the run goes on as if it had never stopped, whatever mesh has
/// saved it. Reads no more than this rank holds.
void load_state(const CheckpointReader& reader, TrainState& state);

}  // namespace tessera
