#include "model/attention_layer.h"

#include <cmath>
#include <numeric>

#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/gate_loss.h"
#include "kernels/gate_stats.h"
#include "kernels/group_heads.h"
#include "kernels/rope.h"

namespace tessera {

namespace {

std::vector<int32_t> range(int64_t begin, int64_t end) {
  std::vector<int32_t> groups(static_cast<size_t>(end - begin));
  std::iota(groups.begin(), groups.end(), static_cast<int32_t>(begin));
  return groups;
}

}  // namespace

AttentionLayer::AttentionLayer(ParameterStore& store, const std::string& name,
                               const Options& options)
    : options_(options),
      global_(range(0, options.global_groups)),
      local_(range(options.global_groups, options.kv_heads)),
      all_(range(0, options.kv_heads)),
      scale_(1 / std::sqrt(static_cast<float>(options.head_dim))),
      query_(store, name + ".query.weight", options.heads * options.head_dim, options.hidden,
             options.dtype, options.init_std),
      key_(store, name + ".key.weight", options.kv_heads * options.head_dim, options.hidden,
           options.dtype, options.init_std),
      value_(store, name + ".value.weight", options.kv_heads * options.head_dim, options.hidden,
             options.dtype, options.init_std),
      out_(store, name + ".out.weight", options.hidden, options.heads * options.head_dim,
           options.dtype, options.out_init_std) {
  if (options.output_gate) {
    output_gate_.emplace(store, name + ".output_gate.weight", options.heads * options.head_dim,
                         options.hidden, options.dtype, options.init_std);
  }
  if (options.qk_norm) {
    query_norm_.emplace(store, name + ".query_norm.weight", options.head_dim, options.dtype,
                        options.norm_epsilon);
    key_norm_.emplace(store, name + ".key_norm.weight", options.head_dim, options.dtype,
                      options.norm_epsilon);
  }
  if (options.sink_logit) {
    // exp(-4) beside the scores of a whole row: almost no mass until it is learned.
    sink_logit_ = &store.declare({.name = name + ".sink_logit",
                                  .shard = Shard::replicated({options.heads}),
                                  .initializer = Initializer::kConstant,
                                  .init = -4,
                                  .decay = false});
  }
  if (options.global_groups > 0) gate_.emplace(store, name + ".gate", options.gate);
}

ConstTensorView AttentionLayer::sink_logits() const {
  return sink_logit_ == nullptr ? ConstTensorView{} : sink_logit_->value;
}

TensorView AttentionLayer::sink_logit_gradients() const {
  return sink_logit_ == nullptr ? TensorView{} : sink_logit_->grad;
}

AttentionLayer::Decision AttentionLayer::allocate_decision(StepContext& step) const {
  if (!step.sparsity.gated || !gate_) return {};
  return gate_->allocate_decision(step);
}

TensorView AttentionLayer::unroped(StepContext& step, ConstTensorView x,
                                   int64_t group_heads) const {
  const TensorView y = step.arena.allocate(
      x.dtype(), {options_.global_groups, x.shape()[0], group_heads * options_.head_dim},
      "attention.unroped");
  take_groups(step.stream, {.y = y, .x = x, .groups = global_, .group_heads = group_heads});
  return y;
}

AttentionLayer::Unroped AttentionLayer::project_heads(StepContext& step, Saved& saved,
                                                      bool gated) const {
  const ConstTensorView x = saved.x;
  const int64_t tokens = x.shape()[0];
  const int64_t d = options_.head_dim;
  Arena& arena = step.arena;
  TensorView q = arena.allocate(x.dtype(), {tokens, options_.heads * d}, "attention.q");
  TensorView k = arena.allocate(x.dtype(), {tokens, options_.kv_heads * d}, "attention.k");
  const TensorView v = arena.allocate(x.dtype(), {tokens, options_.kv_heads * d}, "attention.v");
  query_.forward(step, x, q);
  key_.forward(step, x, k);
  value_.forward(step, x, v);
  if (query_norm_) {
    const Norm::Output qn = query_norm_->forward(step, q.reshape({tokens * options_.heads, d}));
    const Norm::Output kn = key_norm_->forward(step, k.reshape({tokens * options_.kv_heads, d}));
    saved.query_norm = qn.saved;
    saved.key_norm = kn.saved;
    q = qn.y;
    k = kn.y;
  }
  q = q.reshape({tokens, options_.heads, d});
  k = k.reshape({tokens, options_.kv_heads, d});
  Unroped heads;
  if (gated) {
    heads = {.q0 = unroped(step, q, options_.heads / options_.kv_heads), .k0 = unroped(step, k, 1)};
  }
  const ConstTensorView positions = step.grid.positions;
  rope(step.stream, {.x = q, .positions = positions, .base = options_.rope_base});
  rope(step.stream, {.x = k, .positions = positions, .base = options_.rope_base});
  saved.q = q;
  saved.k = k;
  saved.v = v.reshape({tokens, options_.kv_heads, d});
  return heads;
}

AttentionLayer::Saved AttentionLayer::forward(StepContext& step, ConstTensorView x,
                                              const Decision& decision, TensorView y) const {
  const int64_t tokens = x.shape()[0];
  const int64_t width = options_.heads * options_.head_dim;
  Saved saved;
  saved.x = x;
  const Unroped heads = project_heads(step, saved, decision.has_value());
  if (decision) saved.selector = gate_->forward(step, heads.q0, heads.k0, *decision);
  const TensorView o =
      step.arena.allocate(x.dtype(), {tokens, options_.heads, options_.head_dim}, "attention.o");
  const TensorView lse =
      step.arena.allocate(DType::kF32, {options_.heads, tokens}, "attention.lse");
  attend(step, saved, o, lse);
  saved.o = o;
  saved.lse = lse;
  ConstTensorView mixed = o.reshape({tokens, width});
  if (output_gate_) {
    const TensorView gate = step.arena.allocate(x.dtype(), {tokens, width}, "attention.gate");
    output_gate_->forward(step, x, gate);
    saved.gate = gate;
    const Arena::Scope scratch(step.arena);
    const TensorView gated = step.arena.allocate(x.dtype(), {tokens, width}, "attention.gated");
    sigmoid_gate_forward(step.stream, {.y = gated, .x = mixed, .g = gate});
    out_.forward(step, gated, y);
  } else {
    out_.forward(step, mixed, y);
  }
  return saved;
}

void AttentionLayer::attend(StepContext& step, Saved& saved, TensorView o, TensorView lse) const {
  const bool sparse = saved.selector.has_value();
  attention_forward(step.stream, {.o = o,
                                  .lse = lse,
                                  .q = saved.q,
                                  .k = saved.k,
                                  .v = saved.v,
                                  .grid = step.grid,
                                  .groups = sparse ? local_ : all_,
                                  .window = step.sparsity.window,
                                  .sink_tokens = options_.sink_tokens,
                                  .scale = scale_,
                                  .sink_logits = sink_logits()});
  if (sparse) attend_global(step, saved, o, lse);
}

void AttentionLayer::attend_global(StepContext& step, Saved& saved, TensorView o,
                                   TensorView lse) const {
  const Gate::Decision& decision = saved.selector->decision;
  const Shape slots = decision.selection.scores.shape();
  const int64_t group_heads = options_.heads / options_.kv_heads;
  const TensorView aux = step.arena.allocate(DType::kF32, slots, "attention.aux_dscores");
  saved.aux_dscores = aux;
  const Arena::Scope scratch(step.arena);
  const TensorView block_lse = step.arena.allocate(
      DType::kF32, {slots[0], slots[1], group_heads, slots[2] - 1}, "attention.block_lse");
  const TensorView unused = step.arena.allocate(DType::kF32, {3}, "attention.unused_losses");
  sparse_attention_forward(step.stream, {.o = o,
                                         .lse = lse,
                                         .q = saved.q,
                                         .k = saved.k,
                                         .v = saved.v,
                                         .grid = step.grid,
                                         .groups = global_,
                                         .rule = gate_->rule(step.sparsity),
                                         .selection = decision.selection,
                                         .lists = decision.lists,
                                         .ramp = gate_->ramp(step.sparsity, decision),
                                         .scale = scale_,
                                         .sink_logits = sink_logits(),
                                         .block_lse = block_lse});
  fill(step.stream, {.x = unused, .value = 0});
  gate_loss(step.stream, {.losses = step.recompute ? unused : step.sums.gate_losses,
                          .dscores = aux,
                          .selection = decision.selection,
                          .block_lse = block_lse,
                          .kl_coefficient = step.sparsity.kl,
                          .entropy_coefficient = step.sparsity.entropy,
                          .z_coefficient = step.sparsity.z_loss});
  if (step.recompute) return;
  gate_stats(step.stream, {.stats = step.sums.gate_stats,
                           .selection = decision.selection,
                           .grid = step.grid,
                           .rule = gate_->rule(step.sparsity),
                           .ramp = gate_->ramp(step.sparsity, decision)});
}

void AttentionLayer::backward(StepContext& step, const Saved& saved, ConstTensorView dy,
                              TensorView dx) const {
  const int64_t tokens = saved.x.shape()[0];
  const int64_t d = options_.head_dim;
  const DType dtype = saved.x.dtype();
  const int64_t width = options_.heads * d;
  Arena& arena = step.arena;
  const Arena::Scope scratch(arena);
  const HeadGradients grads{
      .dq = arena.allocate(dtype, {tokens, options_.heads, d}, "attention.dq"),
      .dk = arena.allocate(dtype, {tokens, options_.kv_heads, d}, "attention.dk"),
      .dv = arena.allocate(dtype, {tokens, options_.kv_heads, d}, "attention.dv")};
  const TensorView d_o = arena.allocate(dtype, {tokens, width}, "attention.do");
  const ConstTensorView o = saved.o.reshape({tokens, width});
  if (output_gate_) {
    const TensorView gated = arena.allocate(dtype, {tokens, width}, "attention.gated");
    const TensorView dgate = arena.allocate(dtype, {tokens, width}, "attention.dgate");
    sigmoid_gate_forward(step.stream, {.y = gated, .x = o, .g = saved.gate});
    out_.backward(step, gated, dy, d_o);
    sigmoid_gate_backward(step.stream,
                          {.dx = d_o, .dg = dgate, .dy = d_o, .x = o, .g = saved.gate});
    output_gate_->backward(step, saved.x, dgate, dx);
  } else {
    out_.backward(step, o, dy, d_o);
  }
  backward_attend(step, saved, d_o.reshape({tokens, options_.heads, d}), grads);
  backward_project(step, saved, grads, dx);
}

void AttentionLayer::backward_attend(StepContext& step, const Saved& saved, ConstTensorView d_o,
                                     const HeadGradients& d) const {
  const bool sparse = saved.selector.has_value();
  Arena& arena = step.arena;
  const Arena::Scope scratch(arena);
  const TensorView delta = arena.allocate(DType::kF32, saved.lse.shape(), "attention.delta");
  attention_backward(step.stream, {.dq = d.dq,
                                   .dk = d.dk,
                                   .dv = d.dv,
                                   .delta = delta,
                                   .d_o = d_o,
                                   .o = saved.o,
                                   .lse = saved.lse,
                                   .q = saved.q,
                                   .k = saved.k,
                                   .v = saved.v,
                                   .grid = step.grid,
                                   .groups = sparse ? local_ : all_,
                                   .window = step.sparsity.window,
                                   .sink_tokens = options_.sink_tokens,
                                   .scale = scale_,
                                   .sink_logits = sink_logits(),
                                   .dsink_logits = sink_logit_gradients()});
  const Shape slots = sparse ? saved.aux_dscores.shape() : Shape{};
  const TensorView dlog_gate =
      sparse ? arena.allocate(DType::kF32, slots.with(2, slots[2] - 1), "attention.dlog_gate")
             : TensorView{};
  if (sparse) backward_global(step, saved, d_o, d, delta, dlog_gate);
  const ConstTensorView positions = step.grid.positions;
  for (const TensorView& x : {d.dq, d.dk}) {
    rope(step.stream,
         {.x = x, .positions = positions, .base = options_.rope_base, .inverse = true});
  }
  if (!sparse) return;
  const TensorView dq0 = arena.allocate(DType::kF32, saved.selector->q0.shape(), "attention.dq0");
  const TensorView dk0 = arena.allocate(DType::kF32, saved.selector->k0.shape(), "attention.dk0");
  gate_->backward(step, *saved.selector, dlog_gate, saved.aux_dscores, dq0, dk0);
  const int64_t group_heads = options_.heads / options_.kv_heads;
  add_groups(step.stream, {.x = d.dq, .y = dq0, .groups = global_, .group_heads = group_heads});
  add_groups(step.stream, {.x = d.dk, .y = dk0, .groups = global_, .group_heads = 1});
}

void AttentionLayer::backward_global(StepContext& step, const Saved& saved, ConstTensorView d_o,
                                     const HeadGradients& d, TensorView delta,
                                     TensorView dlog_gate) const {
  const Gate::Decision& decision = saved.selector->decision;
  sparse_attention_backward(step.stream, {.dq = d.dq,
                                          .dk = d.dk,
                                          .dv = d.dv,
                                          .dlog_gate = dlog_gate,
                                          .delta = delta,
                                          .d_o = d_o,
                                          .o = saved.o,
                                          .lse = saved.lse,
                                          .q = saved.q,
                                          .k = saved.k,
                                          .v = saved.v,
                                          .grid = step.grid,
                                          .groups = global_,
                                          .rule = gate_->rule(step.sparsity),
                                          .selection = decision.selection,
                                          .lists = decision.lists,
                                          .ramp = gate_->ramp(step.sparsity, decision),
                                          .scale = scale_,
                                          .sink_logits = sink_logits(),
                                          .dsink_logits = sink_logit_gradients()});
}

void AttentionLayer::backward_project(StepContext& step, const Saved& saved, const HeadGradients& d,
                                      TensorView dx) const {
  const int64_t tokens = saved.x.shape()[0];
  const int64_t dim = options_.head_dim;
  if (query_norm_) {
    const TensorView dq = d.dq.reshape({tokens * options_.heads, dim});
    const TensorView dk = d.dk.reshape({tokens * options_.kv_heads, dim});
    query_norm_->backward(step, *saved.query_norm, dq, dq);
    key_norm_->backward(step, *saved.key_norm, dk, dk);
  }
  const auto flat = [&](const TensorView& x) { return x.reshape({tokens, x.elements() / tokens}); };
  // With an output gate dx holds its part already.
  query_.backward(step, saved.x, flat(d.dq), dx, /*accumulate=*/output_gate_.has_value());
  key_.backward(step, saved.x, flat(d.dk), dx, /*accumulate=*/true);
  value_.backward(step, saved.x, flat(d.dv), dx, /*accumulate=*/true);
}

}  // namespace tessera
