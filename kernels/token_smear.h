#pragma once

#include "kernels/core/tensor_view.h"

namespace tessera {

// Each token's embedding takes up those of the n tokens before it, weighed by channel: a causal
// depthwise convolution whose tap of the token itself is 1. It works on the table and on ids, not
// on embeddings, so that a rank that has a part of a sequence needs nothing of its neighbour. A
// table may be a shard, as in embedding.h: then its ranks' results add up to the whole.
// Sources: the short convolutions of H3, arXiv:2212.14052, section 3, and Canon layers,
// arXiv:2512.17351; at the embedding alone, as here, it is known as smear.

/// y[t, d] += sum_j weight[j, d] table[before[j, t] - first, d], rounded once to the dtype of y.
struct TokenSmearForward {
  TensorView y;            ///< in and out [tokens, dim], dtype of table: the embeddings
  ConstTensorView table;   ///< [rows, dim], f32 or bf16
  ConstTensorView weight;  ///< [n, dim], dtype of table
  /// [n, tokens], i32: the id of the token j + 1 places before, -1 where the segment has none. Ids
  /// outside [-1, vocabulary) are told as in embedding.h.
  ConstTensorView before;
  int64_t first = 0;
  int64_t vocabulary = 0;  ///< as in embedding.h
};
void token_smear_forward(Stream& stream, const TokenSmearForward& a);

/// Gradient of sum(dy * y) with respect to table and weight:
///   dtable[before[j, t] - first, d] += weight[j, d] dy[t, d], in the order of j and t;
///   dweight[j, d] += sum_t dy[t, d] table[before[j, t] - first, d], of what this shard holds.
struct TokenSmearBackward {
  TensorView dtable;      ///< in and out [rows, dim], f32; added to
  TensorView dweight;     ///< in and out [n, dim], f32; added to
  ConstTensorView dy;     ///< [tokens, dim], dtype of table
  ConstTensorView table;  ///< as in forward, as are the others
  ConstTensorView weight;
  ConstTensorView before;
  int64_t first = 0;
  int64_t vocabulary = 0;
};
void token_smear_backward(Stream& stream, const TokenSmearBackward& a);

namespace cpu {
void token_smear_forward(ThreadPool& threads, const TokenSmearForward& a);
/// dweight alone: dtable is embedding_backward's.
void token_smear_weights(ThreadPool& threads, const TokenSmearBackward& a);
}  // namespace cpu
namespace gpu {
void token_smear_forward(Stream& stream, const TokenSmearForward& a);
void token_smear_weights(Stream& stream, const TokenSmearBackward& a);
}  // namespace gpu

}  // namespace tessera
