#include "kernels/gate_measure.h"
#include "model/attention_layer.h"

namespace tessera {

/// Adds to step.gates in a step that measures. `block_lse` is empty while the gate rests.
void AttentionLayer::measure(StepContext& step, const Saved& saved,
                             ConstTensorView block_lse) const {
  if (step.gates.figures.empty()) return;
  const Shape of_all = step.gates.figures.shape();
  const auto own = [&](TensorView all, Shape shape) {
    return all.rows(step.layer, 1).reshape(shape);
  };
  const TensorView figures = own(step.gates.figures, {of_all[1], of_all[2]});
  const Heads& heads = *saved.global;
  if (!step.tokens.samples.empty()) {
    MeasureGateRows rows{.figures = figures,
                         .map = {},
                         .samples = step.tokens.samples,
                         .sequence_length = step.tokens.sequence_length,
                         .q = heads.in.q,
                         .k = heads.keys,
                         .lse = heads.lse,
                         .grid = step.tokens.share,
                         .groups = global_groups_,
                         .rule = gate_->rule(step.sparsity),
                         .scale = scale_,
                         .sink_logits = global_->sink_logits()};
    if (!step.gates.maps.empty()) {
      rows.map = own(step.gates.maps, {of_all[1], kMapBins, kMapBins + 1});
    }
    if (saved.selector) {
      rows.selection = saved.selector->decision.selection;
      rows.block_lse = block_lse;
      rows.ramp = gate_->ramp(step.sparsity, saved.selector->decision);
    }
    measure_gate_rows(step.stream, rows);
  }
  if (saved.selector) measure_lists(step, saved.selector->decision, figures);
}

/// Ranks that share the sequences add up how often a block was chosen; one of them tells the
/// result.
void AttentionLayer::measure_lists(StepContext& step, const Gate::Decision& decision,
                                   TensorView figures) const {
  const Arena::Scope scratch(step.arena);
  const SegmentGrid& grid = step.tokens.share;
  Communicator& ranks = step.mesh.group(kContext);
  const TensorView counts = step.arena.allocate(
      DType::kF32, {figures.shape()[0], grid.max_blocks(), 2}, "attention.block_counts");
  measure_gate_lists(step.stream, {.figures = figures,
                                   .counts = counts,
                                   .lists = decision.lists,
                                   .grid = grid,
                                   .rule = gate_->rule(step.sparsity)});
  ranks.all_reduce(step.stream, counts, Reduction::kSum);
  if (ranks.rank() == 0) {
    measure_gate_blocks(step.stream, {.figures = figures, .counts = counts});
  }
}

}  // namespace tessera
