#pragma once

#include "kernels/core/tensor_view.h"

namespace tessera {

/// Loss and gradient of softmax cross-entropy in one pass over a chunk of tokens:
///   losses[t] = lse(logits[t]) - logits[t, targets[t]]   (nats; 0 where targets[t] < 0)
///   dlogits[t, v] = scale * (softmax(logits[t])[v] - [v == targets[t]])   (0 where targets[t] <
///   0).
/// Columns from `vocabulary` on are padding: no probability, gradient 0.
struct CrossEntropy {
  TensorView losses;        ///< out [tokens], f32
  TensorView dlogits;       ///< out [tokens, columns], f32 or bf16; may alias logits; optional
  ConstTensorView logits;   ///< [tokens, columns], f32 or bf16
  ConstTensorView targets;  ///< [tokens], i32, < vocabulary; negative: ignored
  int64_t vocabulary;       ///< <= columns
  float scale;              ///< 1 / valid tokens of the global batch
};
void cross_entropy(Stream& stream, const CrossEntropy& a);

namespace cpu {
void cross_entropy(ThreadPool& threads, const CrossEntropy& a);
}

}  // namespace tessera
