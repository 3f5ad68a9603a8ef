#pragma once

#include <string>
#include <variant>

#include "model/attention_layer.h"
#include "model/mlp.h"
#include "model/moe.h"

namespace tessera {

/// What a block keeps for its backward.
enum class Recompute : uint8_t {
  kNothing,  ///< all activations
  kBlock,    ///< its input and its decisions; backward runs forward again
};

/// One layer of the model: x2 = x + attention(norm(x)),  y = x2 + feed_forward(norm(x2)).
class Block {
 public:
  Block(Norm attention_norm, AttentionLayer attention, Norm feed_forward_norm,
        std::variant<Mlp, Moe> feed_forward, Recompute recompute);

  struct Decisions {
    AttentionLayer::Decision attention;
    std::optional<Moe::Decision> moe;
  };
  struct Activations {
    Norm::Saved attention_norm;
    AttentionLayer::Saved attention;
    Norm::Saved feed_forward_norm;
    std::variant<Mlp::Saved, Moe::Saved> feed_forward;
  };
  struct Saved {
    ConstTensorView x;  ///< [tokens, hidden]
    Decisions decisions;
    std::optional<Activations> activations;  ///< absent when they are recomputed
    int64_t mark = 0;                        ///< of the arena, before this block's forward
  };
  struct Output {
    TensorView y;
    Saved saved;
  };

  [[nodiscard]] Output forward(StepContext& step, ConstTensorView x) const;
  /// As forward, and keeps nothing but y: for evaluation.
  [[nodiscard]] TensorView infer(StepContext& step, ConstTensorView x) const;
  AttentionCache make_cache(Stream& stream, const SparsityPlan& plan, int64_t block,
                            const CacheSize& size) const {
    return attention_.make_cache(stream, plan, block, size);
  }
  /// The forward of the new tokens of a plan, x [sequences, hidden], against their caches.
  [[nodiscard]] TensorView decode(StepContext& step, ConstTensorView x, const DecodePlan& plan,
                                  AttentionCache& cache) const;
  /// As infer, for the tokens of a prompt, which are one sequence; puts them into its caches.
  [[nodiscard]] TensorView prefill(StepContext& step, ConstTensorView x, const PrefillPlan& plan,
                                   AttentionCache& cache) const;
  /// d is dy before and dx after.
  void backward(StepContext& step, const Saved& saved, TensorView d) const;

  /// The MoE layer of this block, or nullptr.
  const Moe* moe() const { return std::get_if<Moe>(&feed_forward_); }

 private:
  Decisions allocate_decisions(StepContext& step) const;
  Activations run(StepContext& step, ConstTensorView x, Decisions& decisions, TensorView y) const;
  void run_feed_forward(StepContext& step, Activations& activations, ConstTensorView x,
                        TensorView x2, std::optional<Moe::Decision>& decision, TensorView y) const;

  Norm attention_norm_;
  AttentionLayer attention_;
  Norm feed_forward_norm_;
  std::variant<Mlp, Moe> feed_forward_;
  Recompute recompute_;
};

}  // namespace tessera
