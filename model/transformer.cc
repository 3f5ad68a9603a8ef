#include "model/transformer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "kernels/core/copy.h"
#include "kernels/reduce.h"
#include "model/model.pb.h"
#include "model/sparsity_budget.h"
#include "model/token_region.h"

namespace tessera {

namespace {

RouterMode router_mode(MoeConfig::RouterMode mode) {
  switch (mode) {
    case MoeConfig::SOFTMAX:
      return RouterMode::kSoftmax;
    case MoeConfig::SOFTMAX_NORMALIZED:
      return RouterMode::kSoftmaxNormalized;
    case MoeConfig::SIGMOID:
      return RouterMode::kSigmoid;
    default:
      return RouterMode::kSoftmaxTopK;
  }
}

Moe::BalanceScope balance_scope(MoeConfig::BalanceScope scope) {
  switch (scope) {
    case MoeConfig::MICRO_BATCH:
      return Moe::BalanceScope::kMicroBatch;
    case MoeConfig::GLOBAL_BATCH:
      return Moe::BalanceScope::kGlobalBatch;
    default:
      return Moe::BalanceScope::kSequence;
  }
}

Embedding::Options embedding_options(const ModelConfig& config, DType dtype) {
  return {.vocabulary = config.vocabulary(),
          .hidden = config.hidden(),
          .smear_tokens = config.smear_tokens(),
          .dtype = dtype,
          .init_std = config.init_std()};
}

int64_t head_dim(const ModelConfig& config) {
  return config.head_dim() > 0 ? config.head_dim() : config.hidden() / config.heads();
}

// Each block adds two terms to the residual stream: their sum keeps its variance. GPT-2's rule.
double out_init_std(const ModelConfig& config) {
  return config.init_std() / std::sqrt(2.0 * config.layers());
}

AttentionLayer::Options attention_options(const ModelConfig& config, DType dtype) {
  const AttentionConfig& attention = config.attention();
  const int64_t groups = global_groups(config);
  return {.heads = {.hidden = config.hidden(),
                    .heads = config.heads(),
                    .kv_heads = config.kv_heads(),
                    .head_dim = head_dim(config),
                    .rope_base = config.rope_base(),
                    .output_gate = config.output_gate(),
                    .sink_logit = attention.sink_logit(),
                    .dtype = dtype,
                    .init_std = config.init_std(),
                    .out_init_std = out_init_std(config)},
          .global_groups = groups,
          .sink_tokens = attention.sink_tokens(),
          .norm_epsilon = config.norm_epsilon(),
          .qk_norm = config.qk_norm(),
          .gate = {.groups = groups,
                   .group_heads = config.heads() / config.kv_heads(),
                   .head_dim = head_dim(config),
                   .gate_dim = attention.gate_dim(),
                   .gate_keys = attention.gate_keys(),
                   .sink_blocks = attention.sink_blocks(),
                   .window_blocks = attention.window_blocks(),
                   .tree = {.radix = attention.tree_radix(), .beam = attention.tree_beam()},
                   .random = attention.selection() == AttentionConfig::RANDOM,
                   .trunk_gradient = attention.gate_trunk_grad(),
                   .dtype = dtype}};
}

Moe::Options moe_options(const ModelConfig& config, DType dtype) {
  const MoeConfig& moe = config.moe();
  return {.hidden = config.hidden(),
          .intermediate = moe.intermediate(),
          .experts = moe.experts(),
          .experts_per_token = moe.experts_per_token(),
          .shared_experts = moe.shared_experts(),
          .mode = router_mode(moe.router()),
          .router_scale = moe.router_scale(),
          .balance_loss = moe.balance_loss(),
          .z_loss = moe.z_loss(),
          .capacity_factor = moe.capacity_factor(),
          .balance_scope = balance_scope(moe.balance_scope()),
          .balance_bias = moe.balance_bias_rate() > 0,
          .dtype = dtype,
          .init_std = config.init_std(),
          .out_init_std = out_init_std(config)};
}

}  // namespace

Transformer::Transformer(const ModelConfig& config, DType dtype, Recompute recompute,
                         ParameterStore& store, const RankPlace& place)
    : embedding_(store, embedding_options(config, dtype), place),
      dtype_(dtype),
      hidden_(config.hidden()),
      block_(config.attention().block()),
      gate_keys_(config.attention().gate_keys()),
      sink_tokens_(config.attention().sink_tokens()),
      global_groups_(tessera::global_groups(config)),
      experts_(config.moe().experts()),
      balance_bias_rate_(config.moe().balance_bias_rate()) {
  for (int64_t index = 0; index < config.layers(); ++index) {
    first_parameters_.push_back(std::ssize(store.all()));
    add_block(config, dtype, recompute, store, place, index);
  }
  first_parameters_.push_back(std::ssize(store.all()));
  Norm norm(store, "head.norm.weight", hidden_, dtype, config.norm_epsilon());
  Parameter* const weight =
      config.tie_embeddings()
          ? &embedding_.weight()
          : &store.declare({.name = "head.weight",
                            .shard = Shard::split({config.vocabulary(), hidden_}, 0, place.tensor,
                                                  place.tensor_ranks),
                            .placement = Placement::kTensor,
                            .dtype = dtype,
                            .init = config.init_std()});
  head_ = std::make_unique<Head>(norm, *weight, config.vocabulary());
  count_active_parameters(config, store);
}

void Transformer::count_active_parameters(const ModelConfig& config, const ParameterStore& store) {
  std::set<std::string> counted;  // a parameter may be declared in several parts
  for (const Parameter& parameter : store.all()) {
    if (!parameter.decay || !parameter.trained || !counted.insert(parameter.name).second) continue;
    if (&parameter == &embedding_.weight() && !config.tie_embeddings()) continue;
    const int64_t elements = parameter.shard.whole.elements();
    active_parameters_ += parameter.placement == Placement::kExpert
                              ? elements * config.moe().experts_per_token() / config.moe().experts()
                              : elements;
  }
}

void Transformer::add_block(const ModelConfig& config, DType dtype, Recompute recompute,
                            ParameterStore& store, const RankPlace& place, int64_t index) {
  const std::string name = concat("layers.", index);
  const bool dense = !config.has_moe() || index < config.moe().dense_layers();
  Norm attention_norm(store, name + ".attention_norm.weight", hidden_, dtype,
                      config.norm_epsilon());
  AttentionLayer attention(store, name + ".attention", attention_options(config, dtype), place);
  Norm feed_forward_norm(store, name + ".feed_forward_norm.weight", hidden_, dtype,
                         config.norm_epsilon());
  if (dense) {
    const Mlp::Options options{.hidden = hidden_,
                               .intermediate = config.intermediate(),
                               .dtype = dtype,
                               .init_std = config.init_std(),
                               .out_init_std = out_init_std(config)};
    blocks_.emplace_back(attention_norm, std::move(attention), feed_forward_norm,
                         Mlp(store, name + ".mlp", options, place), recompute);
  } else {
    blocks_.emplace_back(attention_norm, std::move(attention), feed_forward_norm,
                         Moe(store, name + ".moe", moe_options(config, dtype), place, moe_layers_),
                         recompute);
    ++moe_layers_;
  }
}

StepContext Transformer::start(Run& run, const Batch& batch) const {
  return start(run, run.planner.plan(run.stream, run.arena, batch, run.sparsity));
}

StepContext Transformer::start(Run& run, const TokenPlan& tokens) {
  return {.stream = run.stream,
          .arena = run.arena,
          .mesh = run.planner.mesh(),
          .tokens = tokens,
          .sparsity = run.sparsity,
          .router = run.router,
          .sums = run.sums,
          .gates = run.gates,
          .mix = run.mix};
}

/// What differs between layers.
void Transformer::enter_layer(const Run& run, int64_t layer, StepContext& step) const {
  step.layer = layer;
  if (run.kept_of_layers.empty()) return;
  CHECK(std::ssize(run.kept_of_layers) == layers(), "model: a plan has kept blocks for ",
        run.kept_of_layers.size(), " layers, the model has ", layers());
  step.sparsity.kept = run.kept_of_layers[static_cast<size_t>(layer)];
}

/// Every tensor rank has the losses of all tokens of its sequence rank; each counts its own.
void Transformer::add_share(StepContext& step, ConstTensorView x, TensorView total) const {
  const int64_t share = step.tokens.share.tokens();
  add_sum(step.stream,
          {.total = total, .x = x.rows(step.mesh.coordinate(Axis::kTensor) * share, share)});
}

void Transformer::forward_backward(Run& run, const Batch& batch, float loss_scale) const {
  const Arena::Scope scratch(run.arena);
  forward_backward(run, run.planner.plan(run.stream, run.arena, batch, run.sparsity),
                   {.value = loss_scale});
}

void Transformer::forward_backward(Run& run, const TokenPlan& tokens,
                                   const LossScale& scale) const {
  const Arena::Scope scratch(run.arena);
  StepContext step = start(run, tokens);
  const TensorView losses = run.arena.allocate(DType::kF32, tokens.ids.shape(), "losses");
  const TensorView d =
      run.arena.allocate(dtype_, {tokens.share.tokens(), hidden_}, "residual_gradient");
  std::vector<Block::Saved> saved;
  saved.reserve(blocks_.size());
  const auto tell = [](const std::function<void(int64_t)>& whom, int64_t parameter) {
    if (whom) whom(parameter);
  };
  CollectiveLog& log = step.mesh.world().log();
  log.set_phase(Phase::kForward);
  tell(run.need_values, first_parameters_[0]);
  TensorView x = embedding_.forward(step);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    tell(run.need_values, first_parameters_[i + 1]);
    log.set_layer(static_cast<int>(i));
    enter_layer(run, static_cast<int64_t>(i), step);
    Block::Output out = blocks_[i].forward(step, x);
    x = out.y;
    saved.push_back(std::move(out.saved));
  }
  log.set_layer(-1);
  tell(run.need_values, std::numeric_limits<int64_t>::max());
  head_->forward_backward(step, x, tokens.targets, scale, losses, d);
  log.set_phase(Phase::kBackward);
  tell(run.gradients_done, first_parameters_.back());
  for (size_t i = blocks_.size(); i-- > 0;) {
    log.set_layer(static_cast<int>(i));
    enter_layer(run, static_cast<int64_t>(i), step);
    blocks_[i].backward(step, saved[i], d);
    run.arena.release(saved[i].mark);
    tell(run.gradients_done, first_parameters_[i]);
  }
  log.set_layer(-1);
  embedding_.backward(step, d);
  add_share(step, losses, step.sums.loss);
}

TensorView Transformer::infer_blocks(const Run& run, StepContext& step, TensorView x) const {
  for (int64_t layer = 0; layer < layers(); ++layer) {
    enter_layer(run, layer, step);
    x = blocks_[static_cast<size_t>(layer)].infer(step, x);
  }
  return x;
}

void Transformer::forward(Run& run, const Batch& batch) const {
  const Arena::Scope scratch(run.arena);
  const int64_t tokens = batch.tokens.shape()[0] / run.planner.mesh().size(Axis::kSequence);
  forward(run, batch, run.arena.allocate(DType::kF32, {tokens}, "losses"));
}

void Transformer::forward(Run& run, const Batch& batch, TensorView losses) const {
  const Arena::Scope scratch(run.arena);
  StepContext step = start(run, batch);
  if (run.on_selection) step.on_selection = &run.on_selection;
  TensorView x = embedding_.forward(step);
  x = infer_blocks(run, step, x);
  const TensorView hits = run.arena.allocate(DType::kF32, losses.shape(), "hits");
  head_->forward(step, x, step.tokens.targets, losses, hits);
  add_share(step, losses, step.sums.loss);
  add_share(step, hits, step.sums.hits);
}

void Transformer::logits(Run& run, const Batch& batch, TensorView logits) const {
  const Arena::Scope scratch(run.arena);
  StepContext step = start(run, batch);
  if (run.on_selection) step.on_selection = &run.on_selection;
  TensorView x = embedding_.forward(step);
  x = infer_blocks(run, step, x);
  head_->logits(step, x, logits);
}

std::vector<AttentionCache> Transformer::make_caches(Stream& stream, const SparsityPlan& plan,
                                                     const CacheSize& size) const {
  std::vector<AttentionCache> caches;
  for (const Block& block : blocks_) {
    caches.push_back(block.make_cache(stream, plan, block_, size));
  }
  return caches;
}

void Transformer::decode(Run& run, const DecodeInput& input, std::vector<AttentionCache>& caches,
                         TensorView logits) const {
  const Arena::Scope scratch(run.arena);
  decode(run, plan_decoding(run.stream, run.arena, input, decode_options(caches)), caches, logits);
}

DecodeOptions Transformer::decode_options(std::span<const AttentionCache> caches) const {
  return {.block = block_,
          .gate_keys = gate_keys_,
          .smear_tokens = smear_tokens(),
          .window = caches.front().window};
}

void Transformer::decode(Run& run, const DecodePlan& plan, std::vector<AttentionCache>& caches,
                         TensorView logits) const {
  const Arena::Scope scratch(run.arena);
  StepContext step{run.stream, run.arena, run.planner.mesh(), plan.tokens, run.sparsity,
                   run.router, run.sums};
  TensorView x = embedding_.forward(step);
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    enter_layer(run, static_cast<int64_t>(layer), step);
    x = blocks_[layer].decode(step, x, plan, caches[layer]);
  }
  head_->logits(step, x, logits);
}

void Transformer::prefill(Run& run, const Batch& batch, int64_t place,
                          std::vector<AttentionCache>& caches) const {
  CHECK(batch.sequences == 1 && batch.starts.elements() == 2, "prefill: a batch of ",
        batch.sequences, " sequences in ", batch.starts.elements() - 1,
        " segments, expected one of each");
  const Arena::Scope scratch(run.arena);
  const PrefillPlan plan =
      plan_prefill(run.stream, run.arena, place, batch.tokens.elements(), decode_options(caches));
  StepContext step = start(run, batch);
  TensorView x = embedding_.forward(step);
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    enter_layer(run, static_cast<int64_t>(layer), step);
    x = blocks_[layer].prefill(step, x, plan, caches[layer]);
  }
}

void Transformer::update_balance_bias(Stream& stream, ConstTensorView expert_counts) const {
  for (const Block& block : blocks_) {
    const Moe* moe = block.moe();
    if (moe == nullptr) continue;
    const ConstTensorView counts = expert_counts.rows(moe->index(), 1).reshape({experts_});
    moe->update_balance_bias(stream, counts, balance_bias_rate_);
  }
}

}  // namespace tessera
