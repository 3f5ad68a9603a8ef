#include <array>

#include "kernels/cache_append.h"
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
  page_gate(step.stream, {.state = cache.state,
                          .kbar = cache.kbar,
                          .k0 = k0,
                          .r = pool_->value,
                          .positions = step.tokens.share.positions,
                          .part = step.tokens.share.block / options_.gate_keys});
  // A gate key for each sequence, of which those of complete parts are kept: so a step does not
  // depend on where the sequences are, and can be a graph.
  const Arena::Scope scratch(step.arena);
  const int64_t sequences = k0.shape()[1];
  const TensorView keys =
      step.arena.allocate(DType::kF32, {sequences, 1, options_.gate_dim}, "gate.new_keys");
  const std::array<int32_t, 1> group{0};
  for (int64_t c = 0; c < options_.groups; ++c) {
    make_keys(step, c, cache.kbar.rows(c, 1), keys);
    cache_append(step.stream, {.cache = cache.kt.rows(c, 1),
                               .x = keys,
                               .places = plan.places,
                               .rows = plan.completed_parts,
                               .groups = group});
  }
  insert(step, plan.places, plan.completed_parts, cache);
}

void Gate::remember(StepContext& step, const Saved& saved, const PrefillPlan& plan,
                    const GateCache& cache) const {
  const int64_t keys = plan.pages * options_.gate_keys;
  const Shape& all = cache.kt.shape();  // [groups, sequences, keys, gate_dim]
  const TensorView rows = cache.kt.reshape({all[0] * all[1] * all[2], all[3]});
  for (int64_t c = 0; c < options_.groups; ++c) {
    const ConstTensorView pooled =
        saved.kbar.rows(c, 1).reshape({saved.kbar.shape()[1], options_.head_dim});
    make_keys(step, c, pooled.rows(0, keys), rows.rows((c * all[1] + plan.place) * all[2], keys));
  }
  insert(step, plan.places.rows(0, plan.pages), plan.page_numbers, cache);
}

/// kt = pooled keys x W_k of a group.
void Gate::make_keys(StepContext& step, int64_t group, ConstTensorView pooled,
                     TensorView keys) const {
  const int64_t d = options_.head_dim;
  const int64_t dim = options_.gate_dim;
  matmul(step.stream, {.c = keys.reshape({keys.elements() / dim, dim}),
                       .a = pooled.reshape({pooled.elements() / d, d}),
                       .b = key_->value.rows(group, 1).reshape({dim, d}),
                       .transpose_b = true});
}

void Gate::insert(StepContext& step, ConstTensorView places, ConstTensorView pages,
                  const GateCache& cache) const {
  if (!options_.tree.enabled()) return;
  insert_pages(step.stream, {.nodes = cache.nodes,
                             .kt = cache.kt,
                             .places = places,
                             .numbers = pages,
                             .sink_blocks = options_.sink_blocks,
                             .tree = options_.tree});
}

}  // namespace tessera
