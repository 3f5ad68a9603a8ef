#include "model/attention_layer.h"

#include <cmath>
#include <numeric>

#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/gate_loss.h"
#include "kernels/gate_stats.h"
#include "kernels/group_heads.h"
#include "model/token_region.h"

namespace tessera {

namespace {

std::vector<int32_t> first_numbers(int64_t count) {
  std::vector<int32_t> numbers(static_cast<size_t>(count));
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

/// Keys and values of other ranks, on their way.
struct Fetch {
  Pending keys;
  Pending values;
};

/// Starts to fetch the rows that `heads` needs; when it has them already, there is nothing to do.
Fetch start_fetch(StepContext& step, const RowExchange& rows, Communicator& ranks, int64_t capacity,
                  AttentionLayer::Heads& heads) {
  if (rows.is_identity()) {
    heads.keys = heads.in.k;
    heads.values = heads.in.v;
    return {};
  }
  const Shape shape = heads.in.k.shape().with(0, capacity);
  const TensorView keys = step.arena.allocate(heads.in.k.dtype(), shape, "attention.keys");
  const TensorView values = step.arena.allocate(heads.in.v.dtype(), shape, "attention.values");
  heads.keys = keys;
  heads.values = values;
  return {rows.start_fetch(ranks, step.stream, heads.in.k, keys),
          rows.start_fetch(ranks, step.stream, heads.in.v, values)};
}

void allocate_output(StepContext& step, AttentionLayer::Heads& heads) {
  const Shape& q = heads.in.q.shape();
  heads.o = step.arena.allocate(heads.in.q.dtype(), q, "attention.o");
  heads.lse = step.arena.allocate(DType::kF32, {q[1], q[0]}, "attention.lse");
  if (step.mix == nullptr) return;
  const DType dtype = heads.in.q.dtype();
  heads.mixed = {.full = step.arena.allocate(dtype, q, "attention.full"),
                 .windowed = step.arena.allocate(dtype, q, "attention.windowed"),
                 .window_lse = step.arena.allocate(DType::kF32, {q[1], q[0]}, "attention.lse")};
}

}  // namespace

AttentionLayer::AttentionLayer(ParameterStore& store, const std::string& name,
                               const Options& options, const RankPlace& place)
    : options_(options), scale_(1 / std::sqrt(static_cast<float>(options.heads.head_dim))) {
  const HeadProjection::Options& heads = options.heads;
  const int64_t group_heads = heads.heads / heads.kv_heads;
  const int64_t global = options.global_groups;
  if (global > 0) {
    global_.emplace(store, name, heads, all_heads(0, global, group_heads));
    global_groups_ = first_numbers(global);
  }
  if (global < heads.kv_heads) {
    local_.emplace(store, name, heads,
                   split_heads(global, heads.kv_heads - global, group_heads, place.tensor,
                               place.tensor_ranks));
    local_groups_ = first_numbers(local_->share().groups());
  }
  if (options.qk_norm) {
    query_norm_.emplace(store, name + ".query_norm.weight", heads.head_dim, heads.dtype,
                        options.norm_epsilon);
    key_norm_.emplace(store, name + ".key_norm.weight", heads.head_dim, heads.dtype,
                      options.norm_epsilon);
  }
  if (global > 0) gate_.emplace(store, name + ".gate", options.gate);
}

HeadProjection::Norms AttentionLayer::norms() const {
  return {query_norm_ ? &*query_norm_ : nullptr, key_norm_ ? &*key_norm_ : nullptr};
}

std::span<const int32_t> AttentionLayer::groups_of(const HeadProjection& kind) const {
  return global_ && &kind == &*global_ ? global_groups_ : local_groups_;
}

AttentionLayer::Decision AttentionLayer::allocate_decision(StepContext& step) const {
  if (!step.sparsity.gated || !gate_) return {};
  return gate_->allocate_decision(step);
}

AttentionLayer::Saved AttentionLayer::forward(StepContext& step, ConstTensorView x,
                                              const Decision& decision, TensorView y) const {
  Saved saved;
  Fetch of_global;
  if (global_) {
    Heads& heads = saved.global.emplace();
    heads.in = global_->project(step, x, norms());
    if (decision) select(step, saved, *decision);
    global_->rotate(step, heads.in, step.tokens.share.positions);
    allocate_output(step, heads);
    of_global = start_fetch(step, step.tokens.share_keys, step.mesh.group(kContext),
                            step.tokens.share_key_rows, heads);
  }
  // The global keys travel meanwhile.
  if (local_) forward_local(step, x, saved);
  if (global_) {
    of_global.keys.wait();
    of_global.values.wait();
    attend_global(step, saved);
  }
  const Arena::Scope scratch(step.arena);
  if (local_) {
    const TensorView partial = partial_of(step, y);
    local_->output(step, saved.local->in, saved.local->o, partial, /*accumulate=*/false);
    sum_partials(step, partial, y);
  }
  if (global_) {
    global_->output(step, saved.global->in, saved.global->o, y, /*accumulate=*/local_.has_value());
  }
  return saved;
}

void AttentionLayer::forward_local(StepContext& step, ConstTensorView x, Saved& saved) const {
  Heads& heads = saved.local.emplace();
  heads.in = local_->project(step, gather_tokens(step, x), norms());
  local_->rotate(step, heads.in, step.tokens.sequence.positions);
  allocate_output(step, heads);
  Fetch window = start_fetch(step, step.tokens.window_keys, step.mesh.along(Axis::kSequence),
                             step.tokens.window_key_rows, heads);
  window.keys.wait();
  window.values.wait();
  attend_dense(step, *local_, heads, step.tokens.sequence);
}

/// The choice of blocks, from queries and keys without RoPE.
void AttentionLayer::select(StepContext& step, Saved& saved, const Gate::Decision& decision) const {
  const HeadProjection::Saved& in = saved.global->in;
  const int64_t d = options_.heads.head_dim;
  const int64_t group_heads = global_->share().group_heads;
  const auto groups = static_cast<int64_t>(global_groups_.size());
  Arena& arena = step.arena;
  const DType dtype = in.q.dtype();
  const int64_t pool_rows = step.tokens.pool_key_rows;
  const TensorView q0 =
      arena.allocate(dtype, {groups, in.q.shape()[0], group_heads * d}, "attention.q0");
  const TensorView k0 = arena.allocate(dtype, {groups, pool_rows, d}, "attention.k0");
  take_groups(step.stream,
              {.y = q0, .x = in.q, .groups = global_groups_, .group_heads = group_heads});
  {
    const Arena::Scope scratch(arena);
    ConstTensorView keys = in.k;
    if (!step.tokens.pool_keys.is_identity()) {
      const TensorView all = arena.allocate(dtype, {pool_rows, groups, d}, "attention.pool_keys");
      step.tokens.pool_keys.fetch(step.mesh.group(kContext), step.stream, in.k, all);
      keys = all;
    }
    take_groups(step.stream, {.y = k0, .x = keys, .groups = global_groups_, .group_heads = 1});
  }
  saved.selector = gate_->forward(step, q0, k0, decision);
  if (step.on_selection != nullptr) (*step.on_selection)(decision.selection);
}

void AttentionLayer::attend_dense(StepContext& step, const HeadProjection& kind, const Heads& heads,
                                  const SegmentGrid& grid) const {
  if (heads.mixed) return attend_mixed(step, kind, heads, grid);
  const HeadShare& share = kind.share();
  attention_forward(step.stream, {.o = heads.o,
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
                                  .group_heads = share.group_heads,
                                  .first_head = share.heads_before()});
}

void AttentionLayer::attend_global(StepContext& step, Saved& saved) const {
  if (saved.selector) {
    attend_chosen(step, saved);
  } else {
    attend_dense(step, *global_, *saved.global, step.tokens.share);
    if (!step.recompute) measure(step, saved, {});
  }
}

void AttentionLayer::attend_chosen(StepContext& step, Saved& saved) const {
  const Gate::Decision& decision = saved.selector->decision;
  const Heads& heads = *saved.global;
  const Shape slots = decision.selection.scores.shape();
  const TensorView aux = step.arena.allocate(DType::kF32, slots, "attention.aux_dscores");
  saved.aux_dscores = aux;
  const Arena::Scope scratch(step.arena);
  const TensorView block_lse = step.arena.allocate(
      DType::kF32, {slots[0], slots[1], global_->share().group_heads, slots[2] - 1},
      "attention.block_lse");
  const TensorView unused = step.arena.allocate(DType::kF32, {3}, "attention.unused_losses");
  sparse_attention_forward(step.stream, {.o = heads.o,
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
                                         .block_lse = block_lse});
  fill(step.stream, {.x = unused, .value = 0});
  gate_loss(step.stream, {.losses = step.recompute ? unused : step.sums.gate_losses,
                          .dscores = aux,
                          .selection = decision.selection,
                          .block_lse = block_lse,
                          .kl_coefficient = step.sparsity.kl,
                          .entropy_coefficient = step.sparsity.entropy,
                          .z_coefficient = step.sparsity.z_loss,
                          .coefficients = step.sparsity.coefficients});
  if (step.recompute) return;
  gate_stats(step.stream, {.stats = step.sums.gate_stats,
                           .selection = decision.selection,
                           .grid = step.tokens.share,
                           .rule = gate_->rule(step.sparsity),
                           .ramp = gate_->ramp(step.sparsity, decision),
                           .tree = options_.gate.tree,
                           .qt = saved.selector->qt,
                           .kt = saved.selector->kt});
  measure(step, saved, block_lse);
}

}  // namespace tessera
