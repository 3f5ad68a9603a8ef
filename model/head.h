#pragma once

#include "model/norm.h"

namespace tessera {

/// Final norm, logits over the vocabulary, and the loss. Works on chunks of tokens, so that the
/// logits of a whole micro-batch are never in memory at once.
class Head {
 public:
  /// `weight` [vocabulary, hidden] may be the embedding's.
  Head(Norm norm, Parameter& weight, int64_t vocabulary);

  /// losses [tokens], f32, is overwritten: nats, 0 where a target is negative. dx [tokens, hidden]
  /// is overwritten by the gradient of scale * sum(losses).
  void forward_backward(StepContext& step, ConstTensorView x, ConstTensorView targets, float scale,
                        TensorView losses, TensorView dx) const;
  /// losses only.
  void forward(StepContext& step, ConstTensorView x, ConstTensorView targets,
               TensorView losses) const;
  /// logits [tokens, vocabulary], f32, is overwritten.
  void logits(StepContext& step, ConstTensorView x, TensorView logits) const;

 private:
  int64_t chunk_tokens(int64_t tokens) const;
  /// losses and stats [tokens, 3] of these logits are overwritten.
  void token_losses(StepContext& step, ConstTensorView logits, ConstTensorView targets,
                    TensorView stats, TensorView losses) const;

  Norm norm_;
  Parameter* weight_;
  int64_t vocabulary_;
};

}  // namespace tessera
