#include "model/moe.h"

#include "kernels/elementwise.h"
#include "kernels/grouped_matmul.h"
#include "kernels/permute_tokens.h"
#include "kernels/swiglu.h"

namespace tessera {

Moe::Moe(ParameterStore& store, const std::string& name, const Options& options, int64_t index)
    : options_(options),
      index_(index),
      router_(store, name + ".router.weight", options.experts, options.hidden, DType::kF32,
              options.init_std) {
  if (options.balance_bias) {
    bias_ = &store.declare({.name = name + ".router.bias",
                            .shard = Shard::replicated({options.experts}),
                            .initializer = Initializer::kConstant,
                            .init = 0,
                            .decay = false,
                            .trained = false});
  }
  gate_up_ = &store.declare(
      {.name = name + ".experts.gate_up.weight",
       .shard = Shard::replicated({options.experts, 2 * options.intermediate, options.hidden}),
       .dtype = options.dtype,
       .init = options.init_std});
  down_ = &store.declare(
      {.name = name + ".experts.down.weight",
       .shard = Shard::replicated({options.experts, options.hidden, options.intermediate}),
       .dtype = options.dtype,
       .init = options.out_init_std});
  if (options.shared_experts > 0) {
    shared_.emplace(store, name + ".shared", options.hidden,
                    options.shared_experts * options.intermediate, options.dtype, options.init_std,
                    options.out_init_std);
  }
}

Moe::Decision Moe::allocate_decision(StepContext& step) const {
  const int64_t tokens = step.grid.tokens();
  const int64_t k = options_.experts_per_token;
  const int64_t scopes = options_.balance_scope == BalanceScope::kSequence ? step.sequences : 1;
  Arena& arena = step.arena;
  return {.experts = arena.allocate(DType::kI32, {tokens, k}, "moe.experts"),
          .weights = arena.allocate(DType::kF32, {tokens, k}, "moe.weights"),
          .counts = arena.allocate(DType::kF32, {scopes, options_.experts}, "moe.counts"),
          .row_of = arena.allocate(DType::kI32, {tokens, k}, "moe.row_of"),
          .source_of = arena.allocate(DType::kI32, {tokens * k}, "moe.source_of"),
          .offsets = arena.allocate(DType::kI32, {options_.experts + 1}, "moe.offsets")};
}

void Moe::route(StepContext& step, const Decision& decision, ConstTensorView logits) const {
  const TensorView& counts = decision.counts;
  route_forward(step.stream, {.experts = decision.experts,
                              .weights = decision.weights,
                              .counts = counts,
                              .logits = logits,
                              .mode = options_.mode,
                              .scale = options_.router_scale,
                              .bias = bias_ == nullptr ? TensorView{} : bias_->value});
  sort_by_expert(step.stream, {.row_of = decision.row_of,
                               .source_of = decision.source_of,
                               .offsets = decision.offsets,
                               .experts = decision.experts});
  const TensorView sums = step.sums.expert_counts.rows(index_, 1).reshape({options_.experts});
  for (int64_t scope = 0; scope < counts.shape()[0]; ++scope) {
    add(step.stream,
        {.y = sums, .a = sums, .b = counts.rows(scope, 1).reshape({options_.experts})});
  }
  if (options_.balance_scope == BalanceScope::kGlobalBatch && step.router.ranks != nullptr) {
    step.router.ranks->all_reduce(step.stream, counts, Reduction::kSum);
  }
}

void Moe::add_losses(StepContext& step, const Decision& decision, ConstTensorView logits,
                     TensorView aux_dlogits) const {
  const Arena::Scope scratch(step.arena);
  const TensorView unused = step.arena.allocate(DType::kF32, {2}, "moe.unused_losses");
  fill(step.stream, {.x = unused, .value = 0});
  fill(step.stream, {.x = aux_dlogits, .value = 0});
  const int64_t scopes = decision.counts.shape()[0];
  const bool global = options_.balance_scope == BalanceScope::kGlobalBatch;
  const int64_t ranks = global && step.router.ranks != nullptr ? step.router.ranks->size() : 1;
  // The z-loss is a mean over this rank's tokens; a global scope is `ranks` micro-batches, so its
  // 1 / scope_tokens already holds 1 / ranks.
  const float share = step.router.share / static_cast<float>(scopes) * static_cast<float>(ranks);
  router_loss(step.stream,
              {.losses = step.recompute ? unused : step.sums.router_losses,
               .dlogits = aux_dlogits,
               .logits = logits,
               .counts = decision.counts,
               .mode = options_.mode,
               .experts_per_token = options_.experts_per_token,
               .scope_tokens = step.grid.tokens() / scopes * ranks,
               .balance_coefficient = static_cast<float>(options_.balance_loss) * share,
               .z_coefficient = static_cast<float>(options_.z_loss) * share});
}

Moe::Saved Moe::forward(StepContext& step, ConstTensorView x, const Decision& decision,
                        TensorView y) const {
  const int64_t tokens = x.shape()[0];
  const int64_t hidden = options_.hidden;
  const int64_t rows = tokens * options_.experts_per_token;
  Arena& arena = step.arena;
  const TensorView logits = arena.allocate(DType::kF32, {tokens, options_.experts}, "moe.logits");
  const TensorView aux = arena.allocate(DType::kF32, {tokens, options_.experts}, "moe.aux_dlogits");
  const TensorView row_weight = arena.allocate(DType::kF32, {rows}, "moe.row_weight");
  const TensorView gate_up =
      arena.allocate(x.dtype(), {rows, 2 * options_.intermediate}, "moe.gate_up");
  Saved saved{.x = x,
              .logits = logits,
              .aux_dlogits = aux,
              .row_weight = row_weight,
              .gate_up = gate_up,
              .decision = decision,
              .shared = {}};
  if (shared_) saved.shared = shared_->forward(step, x, y);

  const Arena::Scope scratch(arena);
  {
    // All router mathematics is in f32: in bf16 two logits would tie that do not.
    const Arena::Scope router_scratch(arena);
    const TensorView x32 = arena.allocate(DType::kF32, {tokens, hidden}, "moe.x32");
    cast(step.stream, {.y = x32, .x = x});
    router_.forward(step, x32, logits);
    if (!step.recompute) route(step, decision, logits);
    add_losses(step, decision, logits, aux);
  }
  permute_pairs(step.stream,
                {.y = row_weight, .x = decision.weights, .source_of = decision.source_of});
  const TensorView rows_in = arena.allocate(x.dtype(), {rows, hidden}, "moe.rows");
  const TensorView a = arena.allocate(x.dtype(), {rows, options_.intermediate}, "moe.activation");
  gather_rows(
      step.stream,
      {.y = rows_in, .x = x, .source_of = decision.source_of, .slots = options_.experts_per_token});
  grouped_matmul(step.stream, {.c = gate_up,
                               .a = rows_in,
                               .b = gate_up_->value,
                               .offsets = decision.offsets,
                               .transpose_b = true});
  swiglu_forward(step.stream, {.y = a, .gate_up = gate_up, .row_weight = row_weight});
  const TensorView rows_out = rows_in;  // the gathered inputs are dead
  grouped_matmul(
      step.stream,
      {.c = rows_out, .a = a, .b = down_->value, .offsets = decision.offsets, .transpose_b = true});
  gather_sum(
      step.stream,
      {.y = y, .x = rows_out, .row_of = decision.row_of, .base = shared_ ? y : TensorView{}});
  return saved;
}

void Moe::backward(StepContext& step, const Saved& saved, ConstTensorView dy, TensorView dx) const {
  const int64_t tokens = saved.x.shape()[0];
  const int64_t rows = tokens * options_.experts_per_token;
  Arena& arena = step.arena;
  const Arena::Scope scratch(arena);
  const TensorView dxp = arena.allocate(saved.x.dtype(), {rows, options_.hidden}, "moe.drows");
  const TensorView drow_weight = arena.allocate(DType::kF32, {rows}, "moe.drow_weight");
  const TensorView dweights =
      arena.allocate(DType::kF32, {tokens, options_.experts_per_token}, "moe.dweights");
  backward_experts(step, saved, dy, dxp, drow_weight);
  permute_pairs(
      step.stream,
      {.y = dweights, .x = drow_weight, .source_of = saved.decision.source_of, .inverse = true});
  backward_router(step, saved, dweights, dx);
  gather_sum(step.stream, {.y = dx, .x = dxp, .row_of = saved.decision.row_of, .base = dx});
  if (shared_) {
    const TensorView dshared =
        arena.allocate(saved.x.dtype(), {tokens, options_.hidden}, "moe.dshared");
    shared_->backward(step, *saved.shared, dy, dshared);
    add(step.stream, {.y = dx, .a = dx, .b = dshared});
  }
}

void Moe::backward_experts(StepContext& step, const Saved& saved, ConstTensorView dy,
                           TensorView dxp, TensorView drow_weight) const {
  const Moe::Decision& decision = saved.decision;
  const DType dtype = saved.x.dtype();
  const int64_t rows = saved.gate_up.shape()[0];
  Arena& arena = step.arena;
  const Arena::Scope scratch(arena);
  const TensorView gathered = arena.allocate(dtype, {rows, options_.hidden}, "moe.gathered");
  const TensorView a = arena.allocate(dtype, {rows, options_.intermediate}, "moe.activation");
  const TensorView da = arena.allocate(dtype, {rows, options_.intermediate}, "moe.dactivation");
  const TensorView dgate_up =
      arena.allocate(dtype, {rows, 2 * options_.intermediate}, "moe.dgate_up");
  gather_rows(step.stream, {.y = gathered,
                            .x = dy,
                            .source_of = decision.source_of,
                            .slots = options_.experts_per_token});
  grouped_matmul(step.stream,
                 {.c = da, .a = gathered, .b = down_->value, .offsets = decision.offsets});
  swiglu_backward(step.stream, {.dgate_up = dgate_up,
                                .dy = da,
                                .gate_up = saved.gate_up,
                                .row_weight = saved.row_weight,
                                .drow_weight = drow_weight,
                                .y = a});
  grouped_matmul_weight(step.stream,
                        {.c = down_->grad, .a = gathered, .b = a, .offsets = decision.offsets});
  gather_rows(step.stream, {.y = gathered,
                            .x = saved.x,
                            .source_of = decision.source_of,
                            .slots = options_.experts_per_token});
  grouped_matmul_weight(
      step.stream,
      {.c = gate_up_->grad, .a = dgate_up, .b = gathered, .offsets = decision.offsets});
  grouped_matmul(step.stream,
                 {.c = dxp, .a = dgate_up, .b = gate_up_->value, .offsets = decision.offsets});
}

void Moe::backward_router(StepContext& step, const Saved& saved, ConstTensorView dweights,
                          TensorView dx) const {
  const int64_t tokens = saved.x.shape()[0];
  Arena& arena = step.arena;
  const Arena::Scope scratch(arena);
  const TensorView dlogits = arena.allocate(DType::kF32, {tokens, options_.experts}, "moe.dlogits");
  const TensorView x32 = arena.allocate(DType::kF32, {tokens, options_.hidden}, "moe.x32");
  const TensorView dx32 = arena.allocate(DType::kF32, {tokens, options_.hidden}, "moe.dx32");
  route_backward(step.stream, {.dlogits = dlogits,
                               .dweights = dweights,
                               .logits = saved.logits,
                               .experts = saved.decision.experts,
                               .mode = options_.mode,
                               .scale = options_.router_scale});
  add(step.stream, {.y = dlogits, .a = dlogits, .b = saved.aux_dlogits});
  cast(step.stream, {.y = x32, .x = saved.x});
  router_.backward(step, x32, dlogits, dx32);
  cast(step.stream, {.y = dx, .x = dx32});
}

void Moe::update_balance_bias(Stream& stream, ConstTensorView counts, float rate) const {
  if (bias_ != nullptr)
    balance_bias(stream, {.bias = bias_->value, .counts = counts, .rate = rate});
}

}  // namespace tessera
