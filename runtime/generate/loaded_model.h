#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "model/transformer.h"
#include "runtime/train/step_plan.h"

namespace tessera {

class CheckpointReader;
class TrainConfig;

/// A trained model, ready to run.
struct LoadedModel {
  LoadedModel();
  ~LoadedModel();
  LoadedModel(LoadedModel&&) noexcept;
  LoadedModel& operator=(LoadedModel&&) noexcept;

  std::unique_ptr<TrainConfig> config;  ///< of the run that made it
  int64_t step = 0;                     ///< finished steps of that run
  int64_t held_steps = 0;               ///< of them, those in which the transition waited
  std::string gate_control;             ///< state of its GateControl; empty without one
  DType dtype = DType::kBF16;
  std::unique_ptr<ParameterStore> store;
  std::unique_ptr<Transformer> model;
};

struct LoadOptions {
  /// "checkpoint": as it was trained; "f32", "bf16", "int4". In f32 a bf16 run's master weights are
  /// used. int4 is bf16 with weights of products in 4 bits (ParameterStore::allocate_int4), made
  /// from the master weights; embedding, head, norms, routers and gates stay as in bf16.
  std::string precision = "checkpoint";
  bool gradients = false;  ///< allocate gradients too; not with int4
  /// Experts drop tokens as in training, where they have a capacity; false: they take all, and the
  /// configuration is changed to say so.
  bool capacities = true;
};

/// `path` is a checkpoint, or a run directory: then its newest valid checkpoint.
/// Throws Error: kNoCheckpoint, kBadData, kUsage for an unknown precision.
LoadedModel load_model(Stream& stream, const std::filesystem::path& path,
                       const LoadOptions& options);

/// How the model attended in step `step` of its run, 0: in its last one, the transition having
/// waited as it did; in sequences of `sequence_length` tokens, 0: of those of that step. Layers
/// keep as many blocks as the run's control of the gates gave them at the end.
StepPlan plan_of(const LoadedModel& loaded, int64_t step, int64_t sequence_length = 0);

/// The configuration of the run that saved a checkpoint. Throws Error(kUsage).
TrainConfig stored_config(const CheckpointReader& reader);
/// Of a model's matrices, by "checkpoint", "f32" or "bf16".
/// Throws Error(kUsage) that names what is `expected`.
DType chosen_dtype(const std::string& precision, const TrainConfig& config,
                   const char* expected = "checkpoint, f32 or bf16");

}  // namespace tessera
