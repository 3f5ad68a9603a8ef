#include "model/transformer.h"

#include <array>
#include <cmath>

#include "kernels/embedding.h"
#include "kernels/reduce.h"
#include "model/model.pb.h"
#include "model/sparsity_budget.h"

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
  return {.hidden = config.hidden(),
          .heads = config.heads(),
          .kv_heads = config.kv_heads(),
          .head_dim = head_dim(config),
          .global_groups = groups,
          .sink_tokens = attention.sink_tokens(),
          .rope_base = config.rope_base(),
          .norm_epsilon = config.norm_epsilon(),
          .qk_norm = config.qk_norm(),
          .output_gate = config.output_gate(),
          .sink_logit = attention.sink_logit(),
          .gate = {.groups = groups,
                   .group_heads = config.heads() / config.kv_heads(),
                   .head_dim = head_dim(config),
                   .gate_dim = attention.gate_dim(),
                   .gate_keys = attention.gate_keys(),
                   .sink_blocks = attention.sink_blocks(),
                   .window_blocks = attention.window_blocks(),
                   .trunk_gradient = attention.gate_trunk_grad(),
                   .dtype = dtype},
          .dtype = dtype,
          .init_std = config.init_std(),
          .out_init_std = out_init_std(config)};
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
          .balance_scope = balance_scope(moe.balance_scope()),
          .balance_bias = moe.balance_bias_rate() > 0,
          .dtype = dtype,
          .init_std = config.init_std(),
          .out_init_std = out_init_std(config)};
}

}  // namespace

Transformer::Transformer(const ModelConfig& config, DType dtype, Recompute recompute,
                         ParameterStore& store)
    : embedding_(&store.declare({.name = "embedding.weight",
                                 .shard = Shard::replicated({config.vocabulary(), config.hidden()}),
                                 .dtype = dtype,
                                 .init = config.init_std()})),
      dtype_(dtype),
      hidden_(config.hidden()),
      block_(config.attention().block()),
      experts_(config.moe().experts()),
      balance_bias_rate_(config.moe().balance_bias_rate()) {
  for (int64_t index = 0; index < config.layers(); ++index) {
    add_block(config, dtype, recompute, store, index);
  }
  Norm norm(store, "head.norm.weight", hidden_, dtype, config.norm_epsilon());
  Parameter* weight = embedding_;
  if (!config.tie_embeddings()) {
    weight = &store.declare({.name = "head.weight",
                             .shard = Shard::replicated({config.vocabulary(), hidden_}),
                             .dtype = dtype,
                             .init = config.init_std()});
  }
  head_ = std::make_unique<Head>(norm, *weight, config.vocabulary());
  for (const Parameter& parameter : store.all()) {
    if (!parameter.decay || !parameter.trained) continue;
    if (&parameter == embedding_ && !config.tie_embeddings()) continue;
    const int64_t elements = parameter.shard.whole.elements();
    const bool routed = parameter.name.find(".experts.") != std::string::npos;
    active_parameters_ +=
        routed ? elements * config.moe().experts_per_token() / config.moe().experts() : elements;
  }
}

void Transformer::add_block(const ModelConfig& config, DType dtype, Recompute recompute,
                            ParameterStore& store, int64_t index) {
  const std::string name = concat("layers.", index);
  const bool dense = !config.has_moe() || index < config.moe().dense_layers();
  Norm attention_norm(store, name + ".attention_norm.weight", hidden_, dtype,
                      config.norm_epsilon());
  AttentionLayer attention(store, name + ".attention", attention_options(config, dtype));
  Norm feed_forward_norm(store, name + ".feed_forward_norm.weight", hidden_, dtype,
                         config.norm_epsilon());
  if (dense) {
    blocks_.emplace_back(attention_norm, std::move(attention), feed_forward_norm,
                         Mlp(store, name + ".mlp", hidden_, config.intermediate(), dtype,
                             config.init_std(), out_init_std(config)),
                         recompute);
  } else {
    blocks_.emplace_back(attention_norm, std::move(attention), feed_forward_norm,
                         Moe(store, name + ".moe", moe_options(config, dtype), moe_layers_),
                         recompute);
    ++moe_layers_;
  }
}

StepContext Transformer::start(Run& run, const Batch& batch, SegmentGrid& grid) const {
  Arena& arena = run.arena;
  const Shape per_segment = batch.starts.shape();
  const BuildSegmentGrid build{
      .positions = arena.allocate(DType::kI32, batch.tokens.shape(), "positions"),
      .tile_starts = arena.allocate(DType::kI32, per_segment, "tile_starts"),
      .block_starts = arena.allocate(DType::kI32, per_segment, "block_starts"),
      .starts = batch.starts,
      .block = block_};
  grid = build_segment_grid(run.stream, build);
  return {run.stream, arena, grid, run.sparsity, run.router, run.sums, batch.sequences};
}

TensorView Transformer::embed(StepContext& step, ConstTensorView tokens) const {
  const TensorView x = step.arena.allocate(dtype_, {tokens.shape()[0], hidden_}, "embedding.y");
  embedding_forward(step.stream, {.y = x, .table = embedding_->value, .ids = tokens});
  return x;
}

double Transformer::forward_backward(Run& run, const Batch& batch, float loss_scale) const {
  const Arena::Scope scratch(run.arena);
  SegmentGrid grid;
  StepContext step = start(run, batch, grid);
  const int64_t tokens = batch.tokens.shape()[0];
  const TensorView losses = run.arena.allocate(DType::kF32, {tokens}, "losses");
  const TensorView d = run.arena.allocate(dtype_, {tokens, hidden_}, "residual_gradient");
  std::vector<Block::Saved> saved;
  saved.reserve(blocks_.size());
  TensorView x = embed(step, batch.tokens);
  for (const Block& block : blocks_) {
    Block::Output out = block.forward(step, x);
    x = out.y;
    saved.push_back(std::move(out.saved));
  }
  head_->forward_backward(step, x, batch.targets, loss_scale, losses, d);
  for (size_t i = blocks_.size(); i-- > 0;) {
    blocks_[i].backward(step, saved[i], d);
    run.arena.release(saved[i].mark);
  }
  embedding_backward(run.stream, {.dtable = embedding_->grad, .dy = d, .ids = batch.tokens});
  return sum(run.stream, losses);
}

double Transformer::forward(Run& run, const Batch& batch) const {
  const Arena::Scope scratch(run.arena);
  SegmentGrid grid;
  StepContext step = start(run, batch, grid);
  const TensorView losses = run.arena.allocate(DType::kF32, {batch.tokens.shape()[0]}, "losses");
  TensorView x = embed(step, batch.tokens);
  for (const Block& block : blocks_) x = block.infer(step, x);
  head_->forward(step, x, batch.targets, losses);
  return sum(run.stream, losses);
}

void Transformer::logits(Run& run, const Batch& batch, TensorView logits) const {
  const Arena::Scope scratch(run.arena);
  SegmentGrid grid;
  StepContext step = start(run, batch, grid);
  TensorView x = embed(step, batch.tokens);
  for (const Block& block : blocks_) x = block.infer(step, x);
  head_->logits(step, x, logits);
}

std::vector<AttentionCache> Transformer::make_caches(Device device, const SparsityPlan& plan,
                                                     int64_t max_tokens) const {
  std::vector<AttentionCache> caches;
  for (const Block& block : blocks_) {
    caches.push_back(block.make_cache(device, plan, block_, max_tokens));
  }
  return caches;
}

void Transformer::decode(Run& run, ConstTensorView token, int64_t position,
                         std::vector<AttentionCache>& caches, TensorView logits) const {
  const Arena::Scope scratch(run.arena);
  // A grid of one token: what the layers ask of it are its size and the token's position.
  std::array<int32_t, 2> starts{0, 1};
  std::array<int32_t, 1> positions{static_cast<int32_t>(position)};
  const ConstTensorView starts_view(starts.data(), DType::kI32, {2}, Device{});
  const SegmentGrid grid{.starts = starts_view,
                         .positions = {positions.data(), DType::kI32, {1}, Device{}},
                         .tile_starts = starts_view,
                         .block_starts = starts_view,
                         .block = block_};
  StepContext step{run.stream, run.arena, grid, run.sparsity, run.router, run.sums, 1};
  TensorView x = embed(step, token);
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    x = blocks_[layer].decode(step, x, position, caches[layer]);
  }
  head_->logits(step, x, logits);
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
