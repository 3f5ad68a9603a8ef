#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "model/batch.h"
#include "model/block.h"
#include "model/embedding.h"
#include "model/head.h"

namespace tessera {

class ModelConfig;

/// The whole model: embedding, blocks, head. Holds parameters and constants, never activations.
class Transformer {
 public:
  /// Declares all parameters in `store`, which must outlive the model; the caller allocates.
  /// `place`: which shards this rank has.
  Transformer(const ModelConfig& config, DType dtype, Recompute recompute, ParameterStore& store,
              const RankPlace& place = {});

  /// What one micro-batch needs besides the tokens.
  struct Run {
    Stream& stream;
    Arena& arena;
    TokenPlanner& planner;
    SparsityPlan sparsity;
    RouterPlan router;
    StepSums& sums;
    /// k of each layer, instead of the plan's; empty: that of the plan.
    std::span<const int64_t> kept_of_layers = {};
    /// In a step that measures its gates: to be added to.
    GateSums gates = {};
    /// For exchanges that overlap with the work, both optional; parameters are numbered in the
    /// order of declaration. need_values(n): the values of parameters before n are read next;
    /// gradients_done(n): the gradients of all from n on are complete.
    std::function<void(int64_t)> need_values = {};
    std::function<void(int64_t)> gradients_done = {};
    /// Sees the choices of each layer's gate in forward() and logits(); optional.
    SelectionObserver on_selection = {};
    /// Groups attend in two ways at once; optional, forward and backward alike.
    const GroupMix* mix = nullptr;
  };

  /// Adds the gradient of loss_scale * (sum of token losses) + the auxiliary losses to the
  /// parameters' gradients, and the losses of this rank's tokens to `run.sums`. Ranks of the
  /// context group make the same calls with the same batch. The host does not wait for the device.
  void forward_backward(Run& run, const Batch& batch, float loss_scale) const;
  /// The same with the plan that run.planner made of the batch. Reads nothing of the host's but the
  /// plan's shapes, so on a mesh where layers exchange nothing, without capacities of experts, it
  /// can be a part of a WorkGraph: then its kernels find their tensors, what `run.sparsity` and
  /// `scale` say of places, and everything in the arena, where they were.
  void forward_backward(Run& run, const TokenPlan& tokens, const LossScale& scale) const;
  /// Adds the losses and hits of this rank's tokens to `run.sums`; keeps nothing.
  void forward(Run& run, const Batch& batch) const;
  /// The same. losses [tokens of the sequence rank], f32, is overwritten by the loss of each token,
  /// 0 where its target is negative; in the order of SequenceLayout::sequence_tokens.
  void forward(Run& run, const Batch& batch, TensorView losses) const;
  /// logits [tokens, vocabulary], f32, is overwritten. For a rank that has all of the model, as are
  /// the caches and decode.
  void logits(Run& run, const Batch& batch, TensorView logits) const;

  /// Decoding: empty caches, one per layer.
  std::vector<AttentionCache> make_caches(Stream& stream, const SparsityPlan& plan,
                                          const CacheSize& size) const;
  /// Decoding: logits [sequences, vocabulary], f32, of what follows each new token. Row s equals
  /// logits() at position s of its sequence, but that experts with a capacity keep all tokens only
  /// where there is one sequence. The caches have room for as many sequences as there are.
  void decode(Run& run, const DecodeInput& input, std::vector<AttentionCache>& caches,
              TensorView logits) const;
  /// The same with a plan of options decode_options(). Reads nothing of the host's, so it can be a
  /// part of a WorkGraph, as forward_backward can.
  void decode(Run& run, const DecodePlan& plan, std::vector<AttentionCache>& caches,
              TensorView logits) const;
  DecodeOptions decode_options(std::span<const AttentionCache> caches) const;
  /// Decoding: `batch` is the beginning of the sequence at `place`, whole blocks of tokens without
  /// targets and in one segment. Leaves in the caches what decode() of each token in turn would
  /// leave there, but for rounding; the sequence goes on at the position behind them.
  void prefill(Run& run, const Batch& batch, int64_t place,
               std::vector<AttentionCache>& caches) const;

  /// Once per optimizer step: loss-free balance biases from the counts of the global batch.
  void update_balance_bias(Stream& stream, ConstTensorView expert_counts) const;

  /// How a planner must cut sequences for this model.
  TokenPlanner::Options planner_options(SequenceOrder order = SequenceOrder::kContiguous) const {
    return {.order = order,
            .block = block_,
            .sink_tokens = sink_tokens_,
            .smear_tokens = smear_tokens()};
  }
  /// Tokens before each whose embeddings it takes up.
  int64_t smear_tokens() const { return embedding_.smear_tokens(); }
  int64_t layers() const { return std::ssize(blocks_); }
  /// Of each layer.
  int64_t global_groups() const { return global_groups_; }
  int64_t moe_layers() const { return moe_layers_; }
  int64_t experts() const { return experts_; }
  int64_t block() const { return block_; }
  /// Multiply-adds of the matrix products of one token's forward, without attention: parameters
  /// that a token meets (embedding look-up excluded).
  int64_t active_parameters() const { return active_parameters_; }

 private:
  void add_block(const ModelConfig& config, DType dtype, Recompute recompute, ParameterStore& store,
                 const RankPlace& place, int64_t index);
  void count_active_parameters(const ModelConfig& config, const ParameterStore& store);
  StepContext start(Run& run, const Batch& batch) const;
  static StepContext start(Run& run, const TokenPlan& tokens);
  void enter_layer(const Run& run, int64_t layer, StepContext& step) const;
  TensorView infer_blocks(const Run& run, StepContext& step, TensorView x) const;
  void add_share(StepContext& step, ConstTensorView x, TensorView total) const;

  Embedding embedding_;
  std::vector<Block> blocks_;
  std::vector<int64_t> first_parameters_;  ///< of each block, and of the head
  std::unique_ptr<Head> head_;
  DType dtype_;
  int64_t hidden_;
  int64_t block_;  ///< tokens per key block
  int64_t gate_keys_;
  int64_t sink_tokens_;
  int64_t global_groups_;
  int64_t moe_layers_ = 0;
  int64_t experts_ = 0;
  float balance_bias_rate_ = 0;
  int64_t active_parameters_ = 0;
};

}  // namespace tessera
