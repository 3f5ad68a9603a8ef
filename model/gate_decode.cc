#include "kernels/matmul.h"
#include "kernels/softplus.h"
#include "model/gate.h"

// The gate of one new token: chooses among the complete pages, then adds the token to its page.

namespace tessera {

Gate::Choice Gate::choose(StepContext& step, ConstTensorView q0, int64_t position,
                          const GateCache& cache) const {
  Arena& arena = step.arena;
  const int64_t groups = options_.groups;
  const int64_t kept = step.sparsity.kept;
  const int64_t most = options_.sink_blocks + kept + options_.window_blocks;
  const TensorView qt = arena.allocate(DType::kF32, {groups, 1, options_.gate_dim}, "gate.qt");
  const TensorView widths = arena.allocate(DType::kF32, {groups}, "gate.widths");
  const BlockSelection selection{
      .blocks = arena.allocate(DType::kI32, {groups, 1, kept + 1}, "gate.blocks"),
      .scores = arena.allocate(DType::kF32, {groups, 1, kept + 1}, "gate.scores"),
      .counts = arena.allocate(DType::kI32, {groups, 1}, "gate.counts")};
  const TensorView scores =
      arena.allocate(DType::kF32, {groups, cache.page_rows.shape()[0]}, "gate.page_scores");
  const Choice choice{.spans = arena.allocate(DType::kI32, {groups, most, 2}, "gate.spans"),
                      .log_gates = arena.allocate(DType::kF32, {groups, most}, "gate.log_gates"),
                      .counts = arena.allocate(DType::kI32, {groups}, "gate.span_counts")};
  for (int64_t c = 0; c < groups; ++c) {
    matmul(step.stream, {.c = qt.rows(c, 1).reshape({1, options_.gate_dim}),
                         .a = q0.rows(c, 1).reshape({1, q0.shape()[2]}),
                         .b = query_->value.rows(c, 1).reshape({options_.gate_dim, q0.shape()[2]}),
                         .transpose_b = true});
  }
  softplus_forward(step.stream, {.y = widths, .x = width_->value});
  decode_select(step.stream, {.selection = selection,
                              .spans = choice.spans,
                              .log_gates = choice.log_gates,
                              .counts = choice.counts,
                              .scores = scores,
                              .qt = qt.reshape({groups, options_.gate_dim}),
                              .kt = cache.kt,
                              .page_rows = cache.page_rows,
                              .position = position,
                              .block = step.tokens.share.block,
                              .rule = rule(step.sparsity),
                              .gate_keys = options_.gate_keys,
                              .ramp = {.strength = step.sparsity.strength, .widths = widths},
                              .tree = options_.tree,
                              .nodes = cache.nodes});
  return choice;
}

void Gate::remember(StepContext& step, ConstTensorView k0, int64_t position,
                    const GateCache& cache) const {
  const int64_t groups = options_.groups;
  const int64_t d = options_.head_dim;
  const int64_t part = step.tokens.share.block / options_.gate_keys;
  const bool complete = page_gate(step.stream, {.state = cache.state,
                                                .kbar = cache.kbar,
                                                .k0 = k0.reshape({groups, d}),
                                                .r = pool_->value,
                                                .position = position,
                                                .part = part});
  if (!complete) return;
  for (int64_t c = 0; c < groups; ++c) {
    const TensorView keys = cache.kt.rows(c, 1).reshape({cache.kt.shape()[1], options_.gate_dim});
    matmul(step.stream, {.c = keys.rows(position / part, 1),
                         .a = cache.kbar.rows(c, 1),
                         .b = key_->value.rows(c, 1).reshape({options_.gate_dim, d}),
                         .transpose_b = true});
  }
  if (!options_.tree.enabled()) return;
  insert_page(step.stream, {.nodes = cache.nodes,
                            .kt = cache.kt,
                            .page = position / part,
                            .sink_blocks = options_.sink_blocks,
                            .tree = options_.tree});
}

}  // namespace tessera
