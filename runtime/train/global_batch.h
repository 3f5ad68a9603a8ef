#pragma once

#include <memory>
#include <vector>

#include "model/step_sums.h"
#include "parallel/communicator.h"
#include "runtime/data/data_loader.h"
#include "runtime/train/step_plan.h"

namespace tessera {

class TrainConfig;

/// Runs the model over one global batch: all micro-batches of this rank, normalised by what all
/// ranks together hold, so that gradients only ever need to be summed.
class GlobalBatch {
 public:
  /// `data` are the ranks that share the batch. All references must outlive this.
  GlobalBatch(const TrainConfig& config, const Transformer& model, Communicator& data,
              Stream& stream, Arena& arena);

  /// Sums over all ranks.
  struct Totals {
    double loss = 0;  ///< nats, sum over tokens
    double valid_tokens = 0;
    double gate_kl = 0;
    double gate_entropy = 0;
    double gate_z = 0;
    double sparsity = 0;       ///< mean share of visible key blocks that are not visited
    double gate_openness = 1;  ///< mean gate of the chosen blocks
    double balance = 0;
    double router_z = 0;
    double stop = 0;          ///< how many ranks were asked to stop
    double data_seconds = 0;  ///< of this rank
  };

  /// Global samples [first, first + batch.sequences) of `loader`. Adds this rank's part of the
  /// gradients; the caller sums them over the ranks. `stop` rides along.
  Totals forward_backward(const DataLoader& loader, int64_t first, const StepPlan& plan, bool stop);
  /// Loss per token, nats, of global samples [0, batches * batch.sequences).
  double evaluate(const DataLoader& loader, int64_t batches, const StepPlan& plan);

  /// Tokens that chose each expert in the last forward_backward, over all ranks,
  /// [moe layers, experts] f32; empty without MoE.
  ConstTensorView expert_counts() const;

 private:
  void load(const DataLoader& loader, int64_t first);
  Batch view(const MicroBatch& micro) const;
  Transformer::Run start(const StepPlan& plan, double gate_rows);
  double count_gate_rows_of(const StepPlan& plan) const;
  void reduce(Totals& totals);

  const TrainConfig& config_;
  const Transformer& model_;
  Communicator& data_;
  Stream& stream_;
  Arena& arena_;
  StepSumsBuffer sums_;
  std::vector<MicroBatch> micro_batches_;
};

/// One micro-batch that has only shapes, for plans.
Batch planned_batch(const TrainConfig& config, int data_ranks);
/// Sequences of one micro-batch on each of `data_ranks` ranks.
int64_t micro_sequences(const TrainConfig& config, int data_ranks);
/// What a plan means to the layers, with the losses of the gate shared among `gate_rows` rows.
SparsityPlan sparsity_plan(const StepPlan& plan, double gate_rows);

}  // namespace tessera
