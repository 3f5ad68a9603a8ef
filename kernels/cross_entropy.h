#pragma once

#include "kernels/core/tensor_view.h"

namespace tessera {

// Softmax cross-entropy over a vocabulary whose logits lie in shards: one kernel finds what each
// shard knows about the softmax, one puts the shards together, one computes the gradient. With
// stats gathered from all ranks in between, every rank gets the same bits.
//
// A shard's column v is entry first + v of the vocabulary; entries from `vocabulary` on are
// padding: no probability, gradient 0. A shard may have no columns. Targets are numbers of entries,
// and negative ones are ignored: they cost nothing and have no gradient.

/// What is known about a token's softmax: (m, s, x) in f32, where
///   m >= all logits l, and as large as one of them unless that is infinite
///   s = sum_l exp(l - m)
///   x = logit of the target; -inf where it is in another shard.
inline constexpr int64_t kSoftmaxStats = 3;

/// stats of one shard. An ignored token counts as one without logits.
struct SoftmaxStats {
  TensorView stats;         ///< out [tokens, 3], f32
  ConstTensorView logits;   ///< [tokens, columns], f32 or bf16
  ConstTensorView targets;  ///< [tokens], i32, < vocabulary, as in embedding.h
  int64_t vocabulary;       ///< entries of all shards, without padding
  int64_t first = 0;        ///< entry of column 0
};
void softmax_stats(Stream& stream, const SoftmaxStats& a);

/// merged = the stats of all shards together, and
///   losses[t] = m + log(s) - x   (nats; 0 where targets[t] < 0)
///   hits[t]   = [x >= m]         (1 where no logit is above the target's; 0 where targets[t] < 0).
struct MergeSoftmaxStats {
  TensorView losses;        ///< out [tokens], f32
  TensorView merged;        ///< out [tokens, 3], f32; may be where stats of the first shard are
  ConstTensorView stats;    ///< [shards, tokens, 3], f32, added up in this order
  ConstTensorView targets;  ///< [tokens], i32
  TensorView hits = {};     ///< out [tokens], f32; optional
};
void merge_softmax_stats(Stream& stream, const MergeSoftmaxStats& a);

/// dlogits[t, v] = scale * (exp(logits[t, v] - m) / s - [first + v == targets[t]]): the gradient of
/// scale * sum(losses).
struct CrossEntropyGradient {
  TensorView dlogits;               ///< out [tokens, columns], f32 or bf16; may alias logits
  ConstTensorView logits;           ///< [tokens, columns], f32 or bf16
  ConstTensorView merged;           ///< [tokens, 3], f32: of all shards
  ConstTensorView targets;          ///< [tokens], i32
  int64_t vocabulary;               ///< as in SoftmaxStats
  float scale;                      ///< 1 / valid tokens of the global batch
  int64_t first = 0;                ///< as in SoftmaxStats
  ConstTensorView scale_from = {};  ///< [1], f32: given, the kernel reads its scale there
};
void cross_entropy_gradient(Stream& stream, const CrossEntropyGradient& a);

namespace cpu {
void softmax_stats(ThreadPool& threads, const SoftmaxStats& a);
void merge_softmax_stats(ThreadPool& threads, const MergeSoftmaxStats& a);
void cross_entropy_gradient(ThreadPool& threads, const CrossEntropyGradient& a);
}  // namespace cpu
namespace gpu {
void softmax_stats(Stream& stream, const SoftmaxStats& a);
void merge_softmax_stats(Stream& stream, const MergeSoftmaxStats& a);
void cross_entropy_gradient(Stream& stream, const CrossEntropyGradient& a);
}  // namespace gpu

}  // namespace tessera
