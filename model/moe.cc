#include "model/moe.h"

#include "kernels/core/copy.h"
#include "kernels/elementwise.h"
#include "kernels/grouped_matmul.h"
#include "kernels/int4_matmul.h"
#include "kernels/permute_tokens.h"
#include "kernels/swiglu.h"

namespace tessera {

Moe::Moe(ParameterStore& store, const std::string& name, const Options& options,
         const RankPlace& place, int64_t index)
    : options_(options),
      exchange_(options.experts, options.experts_per_token, options.capacity_factor,
                place.expert_ranks),
      index_(index),
      router_(store, {.name = name + ".router.weight",
                      .shard = Shard::replicated({options.experts, options.hidden}),
                      .init = options.init_std}) {
  if (options.balance_bias) {
    bias_ = &store.declare({.name = name + ".router.bias",
                            .shard = Shard::replicated({options.experts}),
                            .initializer = Initializer::kConstant,
                            .init = 0,
                            .decay = false,
                            .trained = false});
  }
  const auto experts = [&](const char* matrix, int64_t out, int64_t in, double init) {
    return &store.declare(
        {.name = concat(name, ".experts.", matrix, ".weight"),
         .shard = Shard::split({options.experts, out, in}, 0, place.expert, place.expert_ranks),
         .placement = Placement::kExpert,
         .dtype = options.dtype,
         .init = init,
         .in_products = true});
  };
  gate_up_ = experts("gate_up", 2 * options.intermediate, options.hidden, options.init_std);
  down_ = experts("down", options.hidden, options.intermediate, options.out_init_std);
  if (options.shared_experts > 0) {
    const Mlp::Options shared{.hidden = options.hidden,
                              .intermediate = options.shared_experts * options.intermediate,
                              .dtype = options.dtype,
                              .init_std = options.init_std,
                              .out_init_std = options.out_init_std};
    shared_.emplace(store, name + ".shared", shared, place);
  }
}

Moe::Decision Moe::allocate_decision(StepContext& step) const {
  const int64_t tokens = step.tokens.share.tokens();
  const int64_t k = options_.experts_per_token;
  const bool by_sequence = options_.balance_scope == BalanceScope::kSequence;
  const int64_t scopes = by_sequence ? step.tokens.sequences : 1;
  Arena& arena = step.arena;
  return {.experts = arena.allocate(DType::kI32, {tokens, k}, "moe.experts"),
          .weights = arena.allocate(DType::kF32, {tokens, k}, "moe.weights"),
          .counts = arena.allocate(DType::kF32, {scopes, options_.experts}, "moe.counts"),
          .row_of = arena.allocate(DType::kI32, {tokens, k}, "moe.row_of"),
          .source_of = arena.allocate(DType::kI32, {tokens * k}, "moe.source_of"),
          .offsets = arena.allocate(DType::kI32, {options_.experts + 1}, "moe.offsets"),
          .pairs = 0,
          .exchange = exchange_.allocate(step, tokens)};
}

void Moe::route(StepContext& step, Decision& decision, ConstTensorView logits) const {
  const TensorView& counts = decision.counts;
  const bool by_sequence = options_.balance_scope == BalanceScope::kSequence;
  route_forward(step.stream,
                {.experts = decision.experts,
                 .weights = decision.weights,
                 .counts = counts,
                 .logits = logits,
                 .mode = options_.mode,
                 .scale = options_.router_scale,
                 .bias = bias_ == nullptr ? TensorView{} : bias_->value,
                 .scope_starts = by_sequence ? step.tokens.scope_starts : ConstTensorView{}});
  sort_by_expert(step.stream, {.row_of = decision.row_of,
                               .source_of = decision.source_of,
                               .offsets = decision.offsets,
                               .experts = decision.experts,
                               .capacity = exchange_.pairs_per_expert(logits.shape()[0]),
                               .dropped = step.sums.dropped_pairs});
  decision.pairs = count_pairs(step, decision);
  const TensorView sums = step.sums.expert_counts.rows(index_, 1).reshape({options_.experts});
  for (int64_t scope = 0; scope < counts.shape()[0]; ++scope) {
    add(step.stream,
        {.y = sums, .a = sums, .b = counts.rows(scope, 1).reshape({options_.experts})});
  }
  const bool global = options_.balance_scope == BalanceScope::kGlobalBatch;
  Communicator& ranks = global ? step.mesh.world() : step.mesh.group(kContext);
  ranks.all_reduce(step.stream, counts, Reduction::kSum);
}

void Moe::add_losses(StepContext& step, const Decision& decision, ConstTensorView logits,
                     TensorView aux_dlogits) const {
  const Arena::Scope scratch(step.arena);
  const TensorView unused = step.arena.allocate(DType::kF32, {2}, "moe.unused_losses");
  fill(step.stream, {.x = unused, .value = 0});
  fill(step.stream, {.x = aux_dlogits, .value = 0});
  const int64_t scopes = decision.counts.shape()[0];
  const bool by_sequence = options_.balance_scope == BalanceScope::kSequence;
  const bool global = options_.balance_scope == BalanceScope::kGlobalBatch;
  const int64_t micro_batches = global ? step.mesh.group(kBatch).size() : 1;
  // The losses are means over the tokens of a scope, which may be on several ranks; a micro-batch
  // is one share of the global batch, a scope of several micro-batches as many shares.
  const float share =
      step.router.share / static_cast<float>(scopes) * static_cast<float>(micro_batches);
  router_loss(step.stream,
              {.losses = step.recompute ? unused : step.sums.router_losses,
               .dlogits = aux_dlogits,
               .logits = logits,
               .counts = decision.counts,
               .mode = options_.mode,
               .experts_per_token = options_.experts_per_token,
               .scope_tokens = step.tokens.all() / scopes * micro_batches,
               .balance_coefficient = static_cast<float>(options_.balance_loss) * share,
               .z_coefficient = static_cast<float>(options_.z_loss) * share,
               .scope_starts = by_sequence ? step.tokens.scope_starts : ConstTensorView{}});
}

ConstTensorView Moe::offsets_here(const Decision& decision) const {
  return exchange_.alone() ? decision.offsets : decision.exchange.offsets;
}

/// (token, slot) pairs of this rank that are not dropped; on a plan, the most there can be. The
/// host waits for the stream where nothing else tells how many there are: where experts have a
/// capacity or are on several ranks.
int64_t Moe::count_pairs(StepContext& step, Decision& decision) const {
  const int64_t most = exchange_.most_pairs(decision.row_of.shape()[0]);
  if (!exchange_.alone()) {
    return exchange_.decide(step, decision.offsets, most, decision.exchange);
  }
  if (options_.capacity_factor == 0 || step.stream.on(DeviceKind::kPlan)) return most;
  return to_vector<int32_t>(step.stream, decision.offsets.rows(options_.experts, 1))[0];
}

ConstTensorView Moe::sources(const Decision& decision) {
  return decision.source_of.rows(0, decision.pairs);
}

/// Rows of the experts here that arrive.
int64_t Moe::rows_here(const Decision& decision) const {
  return exchange_.alone() ? decision.pairs : decision.exchange.rows;
}

int64_t Moe::most_rows(int64_t tokens) const {
  return exchange_.alone() ? exchange_.most_pairs(tokens) : exchange_.capacity(tokens);
}

/// rows [pairs, hidden]: x of each pair that is not dropped, sorted by expert.
void Moe::own_rows(StepContext& step, const Decision& decision, ConstTensorView x,
                   TensorView rows) const {
  gather_rows(step.stream, {.y = rows,
                            .x = x,
                            .source_of = sources(decision),
                            .slots = options_.experts_per_token,
                            .row_of = decision.row_of});
}

/// rows [rows here, hidden]: x of each pair that chose an expert here.
void Moe::rows_of_tokens(StepContext& step, const Decision& decision, ConstTensorView x,
                         TensorView rows) const {
  if (exchange_.alone()) return own_rows(step, decision, x, rows);
  const Arena::Scope scratch(step.arena);
  const int64_t tokens = x.shape()[0];
  const int64_t capacity = exchange_.capacity(tokens);
  const TensorView own =
      step.arena
          .allocate(x.dtype(), {exchange_.most_pairs(tokens), options_.hidden}, "moe.rows_sent")
          .rows(0, decision.pairs);
  const TensorView received =
      step.arena.allocate(x.dtype(), {capacity, options_.hidden}, "moe.rows_received");
  own_rows(step, decision, x, own);
  exchange_.start_dispatch(step, decision.exchange, own, received).wait();
  exchange_.sort(step, decision.exchange, received, rows);
}

void Moe::forward_router(StepContext& step, ConstTensorView x, Decision& decision,
                         TensorView logits, TensorView aux_dlogits) const {
  const Arena::Scope scratch(step.arena);
  // All router mathematics is in f32: in bf16 two logits would tie that do not.
  const TensorView x32 = step.arena.allocate(DType::kF32, x.shape(), "moe.x32");
  cast(step.stream, {.y = x32, .x = x});
  router_.forward(step, x32, logits);
  if (!step.recompute) route(step, decision, logits);
  add_losses(step, decision, logits, aux_dlogits);
}

Moe::Saved Moe::forward(StepContext& step, ConstTensorView x, Decision& decision,
                        TensorView y) const {
  const int64_t tokens = x.shape()[0];
  Arena& arena = step.arena;
  const TensorView logits = arena.allocate(DType::kF32, {tokens, options_.experts}, "moe.logits");
  const TensorView aux = arena.allocate(DType::kF32, {tokens, options_.experts}, "moe.aux_dlogits");
  forward_router(step, x, decision, logits, aux);
  Saved saved{.x = x,
              .logits = logits,
              .aux_dlogits = aux,
              .received = {},
              .row_weight = {},
              .gate_up = {},
              .decision = decision,
              .shared = {}};
  Pending on_the_way;
  if (!exchange_.alone()) {
    // What is sent must stay until it is gone, and the shared expert comes before that.
    const int64_t capacity = exchange_.capacity(tokens);
    const TensorView own =
        arena.allocate(x.dtype(), {exchange_.most_pairs(tokens), options_.hidden}, "moe.rows_sent")
            .rows(0, decision.pairs);
    const TensorView received =
        arena.allocate(x.dtype(), {capacity, options_.hidden}, "moe.rows_received");
    own_rows(step, decision, x, own);
    on_the_way = exchange_.start_dispatch(step, decision.exchange, own, received);
    saved.received = received;
  }
  if (shared_) saved.shared = shared_->forward(step, x, y);
  on_the_way.wait();

  const int64_t most = most_rows(tokens);
  const int64_t rows = rows_here(decision);
  const TensorView row_weight = arena.allocate(DType::kF32, {most}, "moe.row_weight").rows(0, rows);
  const TensorView gate_up =
      arena.allocate(x.dtype(), {most, 2 * options_.intermediate}, "moe.gate_up").rows(0, rows);
  saved.row_weight = row_weight;
  saved.gate_up = gate_up;
  forward_experts(step, saved, row_weight, gate_up, y);
  return saved;
}

/// y [rows, out] = x W^T, each row with the matrix of its expert.
void Moe::multiply(StepContext& step, const Parameter& weight, ConstTensorView x,
                   ConstTensorView offsets, TensorView y) {
  if (!weight.int4().empty()) {
    int4_matmul(step.stream, {.c = y, .a = x, .w = weight.int4(), .offsets = offsets});
    return;
  }
  grouped_matmul(step.stream,
                 {.c = y, .a = x, .b = weight.value, .offsets = offsets, .transpose_b = true});
}

void Moe::forward_experts(StepContext& step, const Saved& saved, TensorView row_weight,
                          TensorView gate_up, TensorView y) const {
  const Decision& decision = saved.decision;
  const DType dtype = saved.x.dtype();
  const int64_t tokens = saved.x.shape()[0];
  const int64_t rows = gate_up.shape()[0];
  const int64_t most = most_rows(tokens);
  Arena& arena = step.arena;
  const Arena::Scope scratch(arena);
  const TensorView rows_in =
      arena.allocate(dtype, {most, options_.hidden}, "moe.rows").rows(0, rows);
  const TensorView a =
      arena.allocate(dtype, {most, options_.intermediate}, "moe.activation").rows(0, rows);
  if (exchange_.alone()) {
    permute_pairs(step.stream,
                  {.y = row_weight, .x = decision.weights, .source_of = sources(decision)});
    own_rows(step, decision, saved.x, rows_in);
  } else {
    receive_weights(step, decision, row_weight);
    exchange_.sort(step, decision.exchange, saved.received, rows_in);
  }
  const ConstTensorView offsets = offsets_here(decision);
  multiply(step, *gate_up_, rows_in, offsets, gate_up);
  swiglu_forward(step.stream, {.y = a, .gate_up = gate_up, .row_weight = row_weight});
  const TensorView rows_out = rows_in;  // the gathered inputs are dead
  multiply(step, *down_, a, offsets, rows_out);
  ConstTensorView own_out = rows_out;
  if (!exchange_.alone()) {
    const TensorView home =
        arena.allocate(dtype, {exchange_.most_pairs(tokens), options_.hidden}, "moe.rows_home")
            .rows(0, decision.pairs);
    exchange_.bring_back(step, decision.exchange, rows_out, home);
    own_out = home;
  }
  gather_sum(step.stream,
             {.y = y, .x = own_out, .row_of = decision.row_of, .base = shared_ ? y : TensorView{}});
}

/// row_weight [rows here] = the combine weights of the pairs that chose an expert here.
void Moe::receive_weights(StepContext& step, const Decision& decision,
                          TensorView row_weight) const {
  const Arena::Scope scratch(step.arena);
  const int64_t tokens = decision.row_of.shape()[0];
  const int64_t capacity = exchange_.capacity(tokens);
  const TensorView own =
      step.arena.allocate(DType::kF32, {exchange_.most_pairs(tokens), 1}, "moe.weights_sent")
          .rows(0, decision.pairs);
  const TensorView received =
      step.arena.allocate(DType::kF32, {capacity, 1}, "moe.weights_received");
  permute_pairs(step.stream, {.y = own, .x = decision.weights, .source_of = sources(decision)});
  exchange_.start_dispatch(step, decision.exchange, own, received).wait();
  exchange_.sort(step, decision.exchange, received, row_weight.reshape({row_weight.shape()[0], 1}));
}

void Moe::backward(StepContext& step, const Saved& saved, ConstTensorView dy, TensorView dx) const {
  const Decision& decision = saved.decision;
  const DType dtype = saved.x.dtype();
  const int64_t tokens = saved.x.shape()[0];
  const int64_t pairs = decision.pairs;
  const int64_t most_pairs = exchange_.most_pairs(tokens);
  Arena& arena = step.arena;
  const Arena::Scope scratch(arena);
  const TensorView dxp =
      arena.allocate(dtype, {most_pairs, options_.hidden}, "moe.drows").rows(0, pairs);
  const TensorView dpairs =
      arena.allocate(DType::kF32, {most_pairs}, "moe.dpair_weight").rows(0, pairs);
  const TensorView dweights =
      arena.allocate(DType::kF32, {tokens, options_.experts_per_token}, "moe.dweights");
  if (exchange_.alone()) {
    backward_experts(step, saved, dy, dxp, dpairs);
  } else {
    const Arena::Scope there(arena);
    const int64_t rows = saved.gate_up.shape()[0];
    const int64_t most = most_rows(tokens);
    const TensorView drows =
        arena.allocate(dtype, {most, options_.hidden}, "moe.drows_here").rows(0, rows);
    const TensorView dweight = arena.allocate(DType::kF32, {most}, "moe.drow_weight").rows(0, rows);
    backward_experts(step, saved, dy, drows, dweight);
    exchange_.bring_back(step, decision.exchange, drows, dxp);
    exchange_.bring_back(step, decision.exchange, dweight.reshape({rows, 1}),
                         dpairs.reshape({pairs, 1}));
  }
  permute_pairs(step.stream,
                {.y = dweights, .x = dpairs, .source_of = sources(decision), .inverse = true});
  backward_router(step, saved, dweights, dx);
  gather_sum(step.stream, {.y = dx, .x = dxp, .row_of = decision.row_of, .base = dx});
  if (shared_) {
    const TensorView dshared = arena.allocate(dtype, {tokens, options_.hidden}, "moe.dshared");
    shared_->backward(step, *saved.shared, dy, dshared);
    add(step.stream, {.y = dx, .a = dx, .b = dshared});
  }
}

void Moe::backward_experts(StepContext& step, const Saved& saved, ConstTensorView dy,
                           TensorView dxp, TensorView drow_weight) const {
  const Decision& decision = saved.decision;
  const DType dtype = saved.x.dtype();
  const int64_t rows = saved.gate_up.shape()[0];
  const int64_t most = most_rows(saved.x.shape()[0]);
  const ConstTensorView offsets = offsets_here(decision);
  Arena& arena = step.arena;
  const Arena::Scope scratch(arena);
  const auto allocate = [&](int64_t columns, const char* name) {
    return arena.allocate(dtype, {most, columns}, name).rows(0, rows);
  };
  const TensorView gathered = allocate(options_.hidden, "moe.gathered");
  const TensorView a = allocate(options_.intermediate, "moe.activation");
  const TensorView da = allocate(options_.intermediate, "moe.dactivation");
  const TensorView dgate_up = allocate(2 * options_.intermediate, "moe.dgate_up");
  rows_of_tokens(step, decision, dy, gathered);
  grouped_matmul(step.stream, {.c = da, .a = gathered, .b = down_->value, .offsets = offsets});
  swiglu_backward(step.stream, {.dgate_up = dgate_up,
                                .dy = da,
                                .gate_up = saved.gate_up,
                                .row_weight = saved.row_weight,
                                .drow_weight = drow_weight,
                                .y = a});
  grouped_matmul_weight(step.stream, {.c = down_->grad, .a = gathered, .b = a, .offsets = offsets});
  if (exchange_.alone()) {
    own_rows(step, decision, saved.x, gathered);
  } else {
    exchange_.sort(step, decision.exchange, saved.received, gathered);
  }
  grouped_matmul_weight(step.stream,
                        {.c = gate_up_->grad, .a = dgate_up, .b = gathered, .offsets = offsets});
  grouped_matmul(step.stream, {.c = dxp, .a = dgate_up, .b = gate_up_->value, .offsets = offsets});
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
