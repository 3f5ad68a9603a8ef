#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "model/gate_sums.h"
#include "model/step_sums.h"
#include "parallel/bucket_exchange.h"
#include "runtime/config/batch_schedule.h"
#include "runtime/data/data_loader.h"
#include "runtime/train/gate_measure.h"
#include "runtime/train/plan_digest.h"
#include "runtime/train/step_graph.h"
#include "runtime/train/step_plan.h"

namespace tessera {

class TrainConfig;

/// Runs the model over one global batch: all micro-batches of this rank, normalised by what all
/// ranks together hold, so that gradients only ever need to be summed.
class GlobalBatch {
 public:
  /// All references must outlive this.
  GlobalBatch(const TrainConfig& config, const Transformer& model, const ProcessMesh& mesh,
              BucketExchange& exchange, Stream& stream, Arena& arena);

  /// Numbers in the two short messages of a step: sizes before it, totals after it.
  static constexpr size_t kSizes = 2 + kPlanRiders;
  static constexpr size_t kTotals = 14;

  /// Sums over all ranks of the world.
  struct Totals {
    double loss = 0;  ///< nats, sum over tokens
    double valid_tokens = 0;
    double gate_kl = 0;
    double gate_entropy = 0;
    double gate_z = 0;
    double sparsity = 0;       ///< mean share of visible key blocks that are not visited
    double gate_openness = 1;  ///< mean gate of the chosen blocks
    double tree_recall = -1;   ///< of GateStats' samples; negative without any
    double balance = 0;
    double router_z = 0;
    double dropped_pairs = 0;  ///< see StepSums
    double squares = 0;        ///< of the gradients that the ranks own
    double data_seconds = 0;   ///< of this rank
    /// Tokens that chose each expert, [moe layers, experts], f32, in host memory until the next
    /// reduce(); empty without MoE.
    ConstTensorView expert_counts = {};
    std::vector<GateMeasure> gates = {};  ///< in a step that measures them
  };

  /// Fills `out` with rows [first, first + rows) of a global batch.
  using FillRows = std::function<void(int64_t first, int64_t rows, MicroBatch& out)>;

  /// Loads this rank's part of the global batch that `fill` and `plan` describe, and lets the ranks
  /// tell each other in one short message how much they have, and `riders`, which become their
  /// sums.
  void load(const FillRows& fill, const StepPlan& plan, PlanRiders& riders);
  /// The step that was loaded. Adds this rank's part of the gradients, whose sums over the ranks
  /// begin while the last micro-batch is still computed; the caller finishes them, and then asks
  /// for the totals. Values that are still on their way from the last update are waited for where
  /// they are needed. The host does not wait for the device, which gets each micro-batch as a graph
  /// where it can be one (StepGraph).
  void forward_backward(const StepPlan& plan);
  /// Loss per target, nats, that the batch that was loaded has under another plan, which changes
  /// nothing of it. Collective; the same on every rank.
  double loss_under(const StepPlan& plan);
  /// Both, for samples of `loader` from `first` on.
  void forward_backward(const DataLoader& loader, int64_t first, const StepPlan& plan);
  /// Totals of the last forward_backward, whose gradients the exchange has summed, in one message
  /// in which the caller's `riders` travel too; these become their sums. Collective. This is where
  /// the host waits for the device, and reads all that it wants to know of a step at once.
  Totals reduce(std::span<double> riders);
  struct Evaluation {
    double loss = 0;      ///< per target, nats
    double accuracy = 0;  ///< share of the targets that no other token is more probable than
  };
  /// Of global samples [0, batches * batch.sequences), cut as in the step of `plan`, and of a few
  /// more when its batches are of another size.
  Evaluation evaluate(const DataLoader& loader, int64_t batches, const StepPlan& plan);
  /// Loss per target, nats, of each of these global batches, of the size of `plan`. Collective; the
  /// same on every rank.
  std::vector<double> losses(std::span<const FillRows> batches, const StepPlan& plan);

  /// Tokens that chose each expert in the last forward_backward, over all ranks once reduce() has
  /// been called, [moe layers, experts] f32; empty without MoE.
  ConstTensorView expert_counts() const;

  const StepGraph& graph() const { return graph_; }

 private:
  void fill_micro_batches(const FillRows& fill, const BatchSize& size);
  Batch view(const MicroBatch& micro) const;
  Transformer::Run start(const StepPlan& plan, double gate_rows);
  double count_targets() const;
  double forward_loss(const StepPlan& plan);
  void run_micro_batch(Transformer::Run& run, const Batch& batch);
  void send_factors(const SparsityPlan& sparsity, float loss_scale);
  /// Tokens of a micro-batch whose rows are sampled.
  std::vector<int32_t> samples_of(const MicroBatch& micro, int64_t step) const;
  GateSums start_reduce_gates();
  double count_gate_rows_of(const StepPlan& plan) const;
  const Communicator& batch_ranks() const { return mesh_.group(kBatch); }

  const TrainConfig& config_;
  const Transformer& model_;
  const ProcessMesh& mesh_;
  BucketExchange& exchange_;
  Stream& stream_;
  Arena& arena_;
  StepSumsBuffer sums_;
  Buffer factors_;  ///< f32: of the losses of tokens, and of the gate's, for kernels to read
  GateSumsBuffer gates_;
  TokenPlanner planner_;
  std::vector<MicroBatch> micro_batches_;
  int64_t micro_sequences_ = 0;  ///< in each of them
  double gate_rows_ = 0;         ///< of all ranks
  StepGraph graph_;
  bool last_ = false;  ///< the micro-batch under way is the last of its step
  StepPlan plan_;      ///< of the last forward_backward
  Totals totals_;      ///< of this rank
};

/// How a configuration orders the tokens of a sequence over ranks.
SequenceOrder sequence_order(const TrainConfig& config);
/// The global batch of a plan: where it says nothing, that of the configuration.
BatchSize size_of(const TrainConfig& config, const StepPlan& plan);
/// One micro-batch of such a batch that has only shapes, for plans.
Batch planned_batch(const TrainConfig& config, const BatchSize& size, int batch_ranks);
/// What a plan means to the layers, with the losses of the gate shared among `gate_rows` rows.
SparsityPlan sparsity_plan(const StepPlan& plan, double gate_rows);

}  // namespace tessera
