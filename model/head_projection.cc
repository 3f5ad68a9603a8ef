#include "model/head_projection.h"

#include "kernels/elementwise.h"
#include "kernels/rope.h"

namespace tessera {

HeadShare all_heads(int64_t kind_group, int64_t kind_groups, int64_t group_heads) {
  return {.group_heads = group_heads,
          .kind_group = kind_group,
          .kind_groups = kind_groups,
          .heads = kind_groups * group_heads};
}

HeadShare split_heads(int64_t kind_group, int64_t kind_groups, int64_t group_heads, int part,
                      int parts) {
  HeadShare share = all_heads(kind_group, kind_groups, group_heads);
  CHECK(share.heads >= parts, "attention: ", share.heads, " heads of local groups cannot be split ",
        "over ", parts, " tensor ranks");
  const Shard heads = Shard::split({share.heads}, 0, part, parts);
  share.first_head = heads.begin;
  share.heads = heads.length;
  share.split = parts > 1;
  share.parts = parts;
  return share;
}

/// Rows of a matrix [of all `heads` heads * d, hidden] that belong to `count` heads.
Parameter HeadProjection::rows(const std::string& name, int64_t heads, int64_t first,
                               int64_t count) const {
  const int64_t d = options_.head_dim;
  return {.name = name,
          .shard = Shard::range({heads * d, options_.hidden}, 0, first * d, count * d),
          .placement = share_.split ? Placement::kTensor : Placement::kReplicated,
          .dtype = options_.dtype,
          .init = options_.init_std};
}

// A group whose heads are on several ranks has its keys computed by each of them: all ranks then
// have the weights of all groups of the kind, and use those that they need.
Linear HeadProjection::key_or_value(ParameterStore& store, const std::string& name) const {
  const int64_t d = options_.head_dim;
  if (share_.whole_groups()) {
    return {store, rows(name, options_.kv_heads, share_.kind_group + share_.first_group(),
                        share_.groups())};
  }
  Parameter weight = rows(name, options_.kv_heads, share_.kind_group, share_.kind_groups);
  weight.placement = Placement::kReplicated;
  return {store, std::move(weight), {share_.first_group() * d, share_.groups() * d}};
}

Parameter HeadProjection::out_columns(const std::string& name) const {
  const int64_t d = options_.head_dim;
  const int64_t first = share_.kind_group * share_.group_heads + share_.first_head;
  return {
      .name = name,
      .shard = Shard::range({options_.hidden, options_.heads * d}, 1, first * d, share_.heads * d),
      .placement = share_.split ? Placement::kTensor : Placement::kReplicated,
      .dtype = options_.dtype,
      .init = options_.out_init_std};
}

HeadProjection::HeadProjection(ParameterStore& store, const std::string& name,
                               const Options& options, const HeadShare& share)
    : options_(options),
      share_(share),
      query_(store, rows(name + ".query.weight", options.heads,
                         share.kind_group * share.group_heads + share.first_head, share.heads)),
      key_(key_or_value(store, name + ".key.weight")),
      value_(key_or_value(store, name + ".value.weight")),
      out_(store, out_columns(name + ".out.weight")) {
  const int64_t first_head = share.kind_group * share.group_heads + share.first_head;
  if (options.output_gate) {
    output_gate_.emplace(
        store, rows(name + ".output_gate.weight", options.heads, first_head, share.heads));
  }
  if (options.sink_logit) {
    // exp(-4) beside the scores of a whole row: almost no mass until it is learned.
    sink_logit_ =
        &store.declare({.name = name + ".sink_logit",
                        .shard = Shard::range({options.heads}, 0, first_head, share.heads),
                        .placement = share.split ? Placement::kTensor : Placement::kReplicated,
                        .initializer = Initializer::kConstant,
                        .init = -4,
                        .decay = false});
  }
}

ConstTensorView HeadProjection::sink_logits() const {
  return sink_logit_ == nullptr ? ConstTensorView{} : sink_logit_->value;
}

TensorView HeadProjection::sink_logit_gradients() const {
  return sink_logit_ == nullptr ? TensorView{} : sink_logit_->grad;
}

HeadProjection::Saved HeadProjection::project(StepContext& step, ConstTensorView x,
                                              const Norms& norms) const {
  const int64_t tokens = x.shape()[0];
  const int64_t d = options_.head_dim;
  Arena& arena = step.arena;
  Saved saved;
  saved.x = x;
  saved.q = arena.allocate(x.dtype(), {tokens, query_.out()}, "attention.q");
  saved.k = arena.allocate(x.dtype(), {tokens, key_.out()}, "attention.k");
  saved.v = arena.allocate(x.dtype(), {tokens, value_.out()}, "attention.v");
  query_.forward(step, x, saved.q);
  key_.forward(step, x, saved.k);
  value_.forward(step, x, saved.v);
  if (output_gate_) {
    const TensorView gate = arena.allocate(x.dtype(), {tokens, query_.out()}, "attention.gate");
    output_gate_->forward(step, x, gate);
    saved.gate = gate;
  }
  if (norms.query != nullptr) {
    const Norm::Output q = norms.query->forward(step, saved.q.reshape({tokens * share_.heads, d}));
    const Norm::Output k = norms.key->forward(step, saved.k.reshape({tokens * share_.groups(), d}));
    saved.query_norm = q.saved;
    saved.key_norm = k.saved;
    saved.q = q.y;
    saved.k = k.y;
  }
  saved.q = saved.q.reshape({tokens, share_.heads, d});
  saved.k = saved.k.reshape({tokens, share_.groups(), d});
  saved.v = saved.v.reshape({tokens, share_.groups(), d});
  return saved;
}

void HeadProjection::rotate(StepContext& step, const Saved& saved,
                            ConstTensorView positions) const {
  rope(step.stream, {.x = saved.q, .positions = positions, .base = options_.rope_base});
  rope(step.stream, {.x = saved.k, .positions = positions, .base = options_.rope_base});
}

void HeadProjection::rotate_back(StepContext& step, const Gradients& d,
                                 ConstTensorView positions) const {
  for (const TensorView& x : {d.dq, d.dk}) {
    rope(step.stream,
         {.x = x, .positions = positions, .base = options_.rope_base, .inverse = true});
  }
}

void HeadProjection::output(StepContext& step, const Saved& saved, ConstTensorView o, TensorView y,
                            bool accumulate) const {
  const Arena::Scope scratch(step.arena);
  const Shape flat{o.shape()[0], query_.out()};
  ConstTensorView mixed = o.reshape(flat);
  if (output_gate_) {
    const TensorView gated = step.arena.allocate(o.dtype(), flat, "attention.gated");
    sigmoid_gate_forward(step.stream, {.y = gated, .x = mixed, .g = saved.gate});
    mixed = gated;
  }
  out_.forward(step, mixed, y, accumulate);
}

bool HeadProjection::backward_output(StepContext& step, const Saved& saved, ConstTensorView o,
                                     ConstTensorView dy, TensorView d_o, TensorView dx,
                                     bool accumulate) const {
  const Arena::Scope scratch(step.arena);
  const Shape flat{o.shape()[0], query_.out()};
  const TensorView d = d_o.reshape(flat);
  if (!output_gate_) {
    out_.backward(step, o.reshape(flat), dy, d);
    return accumulate;
  }
  const TensorView gated = step.arena.allocate(o.dtype(), flat, "attention.gated");
  const TensorView dgate = step.arena.allocate(o.dtype(), flat, "attention.dgate");
  sigmoid_gate_forward(step.stream, {.y = gated, .x = o.reshape(flat), .g = saved.gate});
  out_.backward(step, gated, dy, d);
  sigmoid_gate_backward(step.stream,
                        {.dx = d, .dg = dgate, .dy = d, .x = o.reshape(flat), .g = saved.gate});
  output_gate_->backward(step, saved.x, dgate, dx, accumulate);
  return true;
}

void HeadProjection::backward_project(StepContext& step, const Saved& saved, const Norms& norms,
                                      const Gradients& d, TensorView dx, bool accumulate) const {
  const int64_t tokens = saved.x.shape()[0];
  const int64_t dim = options_.head_dim;
  if (norms.query != nullptr) {
    const TensorView dq = d.dq.reshape({tokens * share_.heads, dim});
    const TensorView dk = d.dk.reshape({tokens * share_.groups(), dim});
    norms.query->backward(step, *saved.query_norm, dq, dq);
    norms.key->backward(step, *saved.key_norm, dk, dk);
  }
  const auto flat = [&](const TensorView& x) { return x.reshape({tokens, x.elements() / tokens}); };
  query_.backward(step, saved.x, flat(d.dq), dx, accumulate);
  key_.backward(step, saved.x, flat(d.dk), dx, /*accumulate=*/true);
  value_.backward(step, saved.x, flat(d.dv), dx, /*accumulate=*/true);
}

}  // namespace tessera
