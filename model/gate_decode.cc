#include "kernels/matmul.h"
#include "kernels/softplus.h"
#include "model/gate.h"

// The gate of one new token per sequence: chooses among the complete pages, then adds the token to
// its page.

namespace tessera {

Gate::Choice Gate::choose(StepContext& step, ConstTensorView q0, const GateCache& cache) const {
  Arena& arena = step.arena;
  const int64_t groups = options_.groups;
  const int64_t sequences = q0.shape()[1];
  const int64_t width = q0.shape()[2];
  const int64_t kept = step.sparsity.kept;
  const int64_t most = options_.sink_blocks + kept + options_.window_blocks;
  const TensorView qt =
      arena.allocate(DType::kF32, {groups, sequences, options_.gate_dim}, "gate.qt");
  const TensorView widths = arena.allocate(DType::kF32, {groups}, "gate.widths");
  const Shape slots{groups, sequences, kept + 1};
  const BlockSelection selection{
      .blocks = arena.allocate(DType::kI32, slots, "gate.blocks"),
      .scores = arena.allocate(DType::kF32, slots, "gate.scores"),
      .counts = arena.allocate(DType::kI32, {groups, sequences}, "gate.counts")};
  const TensorView scores = arena.allocate(
      DType::kF32, {groups, sequences, cache.page_rows.shape()[1]}, "gate.page_scores");
  const Choice choice{
      .spans = arena.allocate(DType::kI32, {groups, sequences, most, 2}, "gate.spans"),
      .log_gates = arena.allocate(DType::kF32, {groups, sequences, most}, "gate.log_gates"),
      .counts = arena.allocate(DType::kI32, {groups, sequences}, "gate.span_counts")};
  for (int64_t c = 0; c < groups; ++c) {
    matmul(step.stream, {.c = qt.rows(c, 1).reshape({sequences, options_.gate_dim}),
                         .a = q0.rows(c, 1).reshape({sequences, width}),
                         .b = query_->value.rows(c, 1).reshape({options_.gate_dim, width}),
                         .transpose_b = true});
  }
  softplus_forward(step.stream, {.y = widths, .x = width_->value});
  decode_select(step.stream, {.selection = selection,
                              .spans = choice.spans,
                              .log_gates = choice.log_gates,
                              .counts = choice.counts,
                              .scores = scores,
                              .qt = qt,
                              .kt = cache.kt,
                              .page_rows = cache.page_rows,
                              .positions = step.tokens.share.positions,
                              .block = step.tokens.share.block,
                              .rule = rule(step.sparsity),
                              .gate_keys = options_.gate_keys,
                              .ramp = {.strength = step.sparsity.strength, .widths = widths},
                              .tree = options_.tree,
                              .nodes = cache.nodes});
  return choice;
}

void Gate::remember(StepContext& step, ConstTensorView k0, const DecodePlan& plan,
                    const GateCache& cache) const {
  const int64_t part = step.tokens.share.block / options_.gate_keys;
  page_gate(step.stream, {.state = cache.state,
                          .kbar = cache.kbar,
                          .k0 = k0,
                          .r = pool_->value,
                          .positions = step.tokens.share.positions,
                          .part = part});
  for (int64_t s = 0; s < plan.sequences(); ++s) {
    const int64_t position = plan.positions[static_cast<size_t>(s)];
    if ((position + 1) % part == 0) add_key(step, s, position / part, cache);
  }
}

/// Makes the gate key of a part of a page from its pooled key.
void Gate::add_key(StepContext& step, int64_t sequence, int64_t part,
                   const GateCache& cache) const {
  const int64_t d = options_.head_dim;
  const int64_t sequences = cache.kbar.shape()[1];
  const int64_t parts = cache.kt.shape()[2];
  const TensorView pooled = cache.kbar.reshape({options_.groups * sequences, d});
  const TensorView keys =
      cache.kt.reshape({options_.groups * sequences * parts, options_.gate_dim});
  for (int64_t c = 0; c < options_.groups; ++c) {
    const int64_t place = c * sequences + sequence;
    matmul(step.stream, {.c = keys.rows(place * parts + part, 1),
                         .a = pooled.rows(place, 1),
                         .b = key_->value.rows(c, 1).reshape({options_.gate_dim, d}),
                         .transpose_b = true});
  }
  if (!options_.tree.enabled()) return;
  insert_page(step.stream, {.nodes = cache.nodes,
                            .kt = cache.kt,
                            .sequence = sequence,
                            .page = part,
                            .sink_blocks = options_.sink_blocks,
                            .tree = options_.tree});
}

}  // namespace tessera
