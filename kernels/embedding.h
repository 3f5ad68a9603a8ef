#pragma once

#include "kernels/core/tensor_view.h"

namespace tessera {

/// y[t] = table[ids[t]].
struct EmbeddingForward {
  TensorView y;           ///< out [tokens, dim], dtype of table
  ConstTensorView table;  ///< [vocabulary, dim], f32 or bf16
  ConstTensorView ids;    ///< [tokens], i32, each in [0, vocabulary): checked on the CPU
};
void embedding_forward(Stream& stream, const EmbeddingForward& a);

/// dtable[ids[t]] += dy[t], in token order: the same bits for any number of threads.
struct EmbeddingBackward {
  TensorView dtable;    ///< in and out [vocabulary, dim], f32; added to
  ConstTensorView dy;   ///< [tokens, dim], f32 or bf16
  ConstTensorView ids;  ///< [tokens], i32
};
void embedding_backward(Stream& stream, const EmbeddingBackward& a);

namespace cpu {
void embedding_forward(ThreadPool& threads, const EmbeddingForward& a);
void embedding_backward(ThreadPool& threads, const EmbeddingBackward& a);
}  // namespace cpu

}  // namespace tessera
