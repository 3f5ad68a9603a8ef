#pragma once

#include "model/norm.h"

namespace tessera {

/// What the losses of the tokens are multiplied by before their gradient is taken.
struct LossScale {
  float value = 1;
  ConstTensorView from = {};  ///< [1], f32, on the device: given, kernels read it when they run
};

/// Final norm, logits over the vocabulary, and the loss. Works on chunks of tokens, so that the
/// logits of a whole micro-batch are never in memory at once. Each tensor rank has the logits of
/// its own part of the vocabulary for all tokens of the sequence rank.
class Head {
 public:
  /// `weight` [vocabulary here, hidden] may be the embedding's. `vocabulary` is the whole.
  Head(Norm norm, Parameter& weight, int64_t vocabulary);

  /// x, dx [tokens, hidden]: this tensor rank's share; targets [all tokens] of the sequence rank.
  /// losses [all tokens], f32, is overwritten: nats, 0 where a target is negative; the same on
  /// every tensor rank. dx is overwritten by the gradient of scale * sum(losses).
  void forward_backward(StepContext& step, ConstTensorView x, ConstTensorView targets,
                        const LossScale& scale, TensorView losses, TensorView dx) const;
  /// losses only, and hits [all tokens], f32: 1 where no logit is above the target's, else 0.
  void forward(StepContext& step, ConstTensorView x, ConstTensorView targets, TensorView losses,
               TensorView hits) const;
  /// logits [tokens, vocabulary], f32, is overwritten. For a rank that has the whole vocabulary.
  void logits(StepContext& step, ConstTensorView x, TensorView logits) const;

 private:
  struct Chunk {
    ConstTensorView x;        ///< [count, hidden], normed
    ConstTensorView targets;  ///< [count]
    TensorView losses;        ///< [count]
    TensorView logits;        ///< [count, vocabulary here], f32
    TensorView merged;        ///< [count, 3], f32: softmax_stats of the whole vocabulary
    TensorView hits = {};     ///< [count], f32; optional
  };
  void losses_of(StepContext& step, const Chunk& chunk) const;
  int64_t columns() const { return weight_->shard.length; }
  int64_t chunk_tokens(int64_t tokens) const;

  Norm norm_;
  Parameter* weight_;
  int64_t vocabulary_;
};

}  // namespace tessera
