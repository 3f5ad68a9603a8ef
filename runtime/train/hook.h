#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/train/expert_load.h"
#include "runtime/train/gate_measure.h"
#include "runtime/train/step_plan.h"

namespace tessera {

/// What happened in one optimizer step, already reduced over all ranks.
struct StepReport {
  StepPlan plan;
  int64_t steps = 0;            ///< of the whole run
  int64_t tokens = 0;           ///< in this step, over all ranks
  int64_t consumed_tokens = 0;  ///< since the run began
  double loss = 0;              ///< nats per token
  double gate_kl = 0;           ///< weighted losses of the gate and the router, per step
  double gate_entropy = 0;
  double gate_z = 0;
  double balance_loss = 0;
  double router_z = 0;
  double gradient_norm = 0;  ///< before clipping
  double sparsity = 0;       ///< share of visible key blocks that global groups do not visit
  double gate_openness = 1;  ///< mean gate G of the chosen blocks, 1 while nothing is dropped
  double tree_recall = -1;   ///< share of the blocks chosen through a tree that are among the best
                             ///< of all candidates, of a sample; negative when there is none
  std::optional<double> sparsity_cost =
      {};  ///< loss minus that of full attention, same weights and
           ///< batch, nats per token, where the guard compares
  ExpertLoad expert_load;
  bool skipped = false;         ///< the update was not applied
  int64_t skipped_steps = 0;    ///< since the run began
  double seconds = 0;           ///< of the whole step
  double data_seconds = 0;      ///< of it, waiting for data
  double validation_loss = -1;  ///< nats per token; negative when not measured in this step
  double accuracy = -1;         ///< share of the validation's answers that are the most probable
                                ///< tokens; negative without a measurement or without answers
  std::vector<GateMeasure> gates = {};  ///< by layer and group; empty in steps that measure none
};

/// Curriculum and control: may change the plan of a step, sees its report, is saved with the run.
class Hook {
 public:
  virtual ~Hook() = default;
  /// The same on every rank, and constant: the key of its state in checkpoints.
  virtual std::string name() const = 0;
  /// Before the step. Must do the same on every rank.
  virtual void plan(StepPlan& plan) { (void)plan; }
  /// After it.
  virtual void observe(const StepReport& report) { (void)report; }
  /// Goes into the checkpoint, and comes back.
  virtual std::string state() const { return {}; }
  virtual void restore(std::string_view state) { (void)state; }
};

}  // namespace tessera
