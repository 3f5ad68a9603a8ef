#include <array>

#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/group_heads.h"
#include "model/attention_layer.h"
#include "model/token_region.h"

namespace tessera {

void AttentionLayer::backward(StepContext& step, const Saved& saved, ConstTensorView dy,
                              TensorView dx) const {
  bool written = false;
  if (local_) written = backward_local(step, *saved.local, dy, dx);
  if (global_) backward_global(step, saved, dy, dx, written);
}

AttentionLayer::HeadGradients AttentionLayer::allocate_gradients(StepContext& step,
                                                                 const Heads& heads) const {
  Arena& arena = step.arena;
  const DType dtype = heads.in.q.dtype();
  return {.d_o = arena.allocate(dtype, heads.o.shape(), "attention.do"),
          .delta = arena.allocate(DType::kF32, heads.lse.shape(), "attention.delta"),
          .dq = arena.allocate(dtype, heads.in.q.shape(), "attention.dq"),
          .dkeys = arena.allocate(dtype, heads.keys.shape(), "attention.dkeys"),
          .dvalues = arena.allocate(dtype, heads.values.shape(), "attention.dvalues")};
}

/// Gradients of this rank's own keys: what all ranks that fetched them found.
HeadProjection::Gradients AttentionLayer::bring_home(StepContext& step, const Heads& heads,
                                                     const HeadGradients& d,
                                                     const RowExchange& rows,
                                                     Communicator& ranks) const {
  if (rows.is_identity()) return {.dq = d.dq, .dk = d.dkeys, .dv = d.dvalues};
  const Shape& own = heads.in.k.shape();
  const DType dtype = heads.in.k.dtype();
  const HeadProjection::Gradients home{.dq = d.dq,
                                       .dk = step.arena.allocate(dtype, own, "attention.dk"),
                                       .dv = step.arena.allocate(dtype, own, "attention.dv")};
  rows.give_back(ranks, step.stream, step.arena, d.dkeys, home.dk);
  rows.give_back(ranks, step.stream, step.arena, d.dvalues, home.dv);
  return home;
}

void AttentionLayer::backward_dense(StepContext& step, const HeadProjection& kind,
                                    const Heads& heads, const SegmentGrid& grid,
                                    const HeadGradients& d) const {
  if (heads.mixed) return backward_mixed(step, kind, heads, grid, d);
  const HeadShare& share = kind.share();
  attention_backward(step.stream, {.dq = d.dq,
                                   .dk = d.dkeys,
                                   .dv = d.dvalues,
                                   .delta = d.delta,
                                   .d_o = d.d_o,
                                   .o = heads.o,
                                   .lse = heads.lse,
                                   .q = heads.in.q,
                                   .k = heads.keys,
                                   .v = heads.values,
                                   .grid = grid,
                                   .groups = groups_of(kind),
                                   .window = step.sparsity.window,
                                   .sink_tokens = options_.sink_tokens,
                                   .scale = scale_,
                                   .sink_logits = kind.sink_logits(),
                                   .dsink_logits = kind.sink_logit_gradients(),
                                   .group_heads = share.group_heads,
                                   .first_head = share.heads_before()});
}

bool AttentionLayer::backward_local(StepContext& step, const Heads& heads, ConstTensorView dy,
                                    TensorView dx) const {
  const Arena::Scope scratch(step.arena);
  const TensorView partial = partial_of(step, dx);
  const ConstTensorView all_dy = gather_tokens(step, dy);
  const HeadGradients d = allocate_gradients(step, heads);
  const bool written = local_->backward_output(step, heads.in, heads.o, all_dy, d.d_o, partial,
                                               /*accumulate=*/false);
  backward_dense(step, *local_, heads, step.tokens.sequence, d);
  const HeadProjection::Gradients home =
      bring_home(step, heads, d, step.tokens.window_keys, step.mesh.along(Axis::kSequence));
  local_->rotate_back(step, home, step.tokens.sequence.positions);
  local_->backward_project(step, heads.in, norms(), home, partial, written);
  sum_partials(step, partial, dx);
  return true;
}

void AttentionLayer::backward_global(StepContext& step, const Saved& saved, ConstTensorView dy,
                                     TensorView dx, bool accumulate) const {
  const Arena::Scope scratch(step.arena);
  const Heads& heads = *saved.global;
  const HeadGradients d = allocate_gradients(step, heads);
  const bool written = global_->backward_output(step, heads.in, heads.o, dy, d.d_o, dx, accumulate);
  TensorView dlog_gate;
  if (saved.selector) {
    const Shape& slots = saved.aux_dscores.shape();
    dlog_gate =
        step.arena.allocate(DType::kF32, slots.with(2, slots[2] - 1), "attention.dlog_gate");
    backward_chosen(step, saved, d, dlog_gate);
  } else {
    backward_dense(step, *global_, heads, step.tokens.share, d);
  }
  const HeadProjection::Gradients home =
      bring_home(step, heads, d, step.tokens.share_keys, step.mesh.group(kContext));
  global_->rotate_back(step, home, step.tokens.share.positions);
  if (saved.selector) backward_gate(step, saved, dlog_gate, home);
  global_->backward_project(step, heads.in, norms(), home, dx, written);
}

void AttentionLayer::backward_chosen(StepContext& step, const Saved& saved, const HeadGradients& d,
                                     TensorView dlog_gate) const {
  const Heads& heads = *saved.global;
  const Gate::Decision& decision = saved.selector->decision;
  sparse_attention_backward(step.stream, {.dq = d.dq,
                                          .dk = d.dkeys,
                                          .dv = d.dvalues,
                                          .dlog_gate = dlog_gate,
                                          .delta = d.delta,
                                          .d_o = d.d_o,
                                          .o = heads.o,
                                          .lse = heads.lse,
                                          .q = heads.in.q,
                                          .k = heads.keys,
                                          .v = heads.values,
                                          .grid = step.tokens.share,
                                          .groups = global_groups_,
                                          .rule = gate_->rule(step.sparsity),
                                          .selection = decision.selection,
                                          .lists = decision.lists,
                                          .ramp = gate_->ramp(step.sparsity, decision),
                                          .scale = scale_,
                                          .sink_logits = global_->sink_logits(),
                                          .dsink_logits = global_->sink_logit_gradients()});
}

/// Adds to dq and dk what reaches queries and keys through the gate.
void AttentionLayer::backward_gate(StepContext& step, const Saved& saved, ConstTensorView dlog_gate,
                                   const HeadProjection::Gradients& d) const {
  const Arena::Scope scratch(step.arena);
  const Gate::Saved& selector = *saved.selector;
  const TensorView dq0 = step.arena.allocate(DType::kF32, selector.q0.shape(), "attention.dq0");
  const TensorView dk0 = step.arena.allocate(DType::kF32, selector.k0.shape(), "attention.dk0");
  gate_->backward(step, selector, dlog_gate, saved.aux_dscores, dq0, dk0);
  const int64_t group_heads = global_->share().group_heads;
  add_groups(step.stream,
             {.x = d.dq, .y = dq0, .groups = global_groups_, .group_heads = group_heads});
  if (step.tokens.pool_keys.is_identity()) {
    add_groups(step.stream, {.x = d.dk, .y = dk0, .groups = global_groups_, .group_heads = 1});
    return;
  }
  const Shape& own = d.dk.shape();
  const Shape pool = own.with(0, selector.k0.shape()[1]);
  const TensorView all = step.arena.allocate(DType::kF32, pool, "attention.pool_dk");
  const TensorView home = step.arena.allocate(DType::kF32, own, "attention.pool_dk_home");
  fill(step.stream, {.x = all, .value = 0});
  add_groups(step.stream, {.x = all, .y = dk0, .groups = global_groups_, .group_heads = 1});
  step.tokens.pool_keys.give_back(step.mesh.group(kContext), step.stream, step.arena, all, home);
  const std::array<int32_t, 1> together{0};
  add_groups(step.stream, {.x = d.dk,
                           .y = home.reshape({1, own[0], own[1] * own[2]}),
                           .groups = together,
                           .group_heads = own[1]});
}

}  // namespace tessera
