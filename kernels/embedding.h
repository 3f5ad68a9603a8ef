#pragma once

#include <span>

#include "kernels/core/tensor_view.h"

namespace tessera {

// A table holds entries [first, first + rows) of the vocabulary, all of them unless told otherwise.
// Ids are numbers of entries; one outside [0, vocabulary) throws on the CPU, and stops the device
// on a GPU (core/device_check.cuh).

/// y[t] = table[ids[t] - first], or 0 where another shard holds that entry.
struct EmbeddingForward {
  TensorView y;           ///< out [tokens, dim], dtype of table
  ConstTensorView table;  ///< [rows, dim], f32 or bf16
  ConstTensorView ids;    ///< [tokens], i32
  int64_t first = 0;
  int64_t vocabulary = 0;  ///< entries of all shards; 0: the rows of the table, with first = 0
};
void embedding_forward(Stream& stream, const EmbeddingForward& a);

/// dtable[ids[t] - first] += dy[t], or scale * dy[t] by element, in token order, where this shard
/// holds that entry: the same bits for any number of threads.
struct EmbeddingBackward {
  TensorView dtable;    ///< in and out [rows, dim], f32; added to
  ConstTensorView dy;   ///< [tokens, dim], f32 or bf16
  ConstTensorView ids;  ///< [tokens], i32
  int64_t first = 0;
  int64_t vocabulary = 0;      ///< as in forward
  ConstTensorView scale = {};  ///< [dim], dtype of dy; optional
  bool gaps = false;           ///< ids may be -1: no entry, nothing is added
};
void embedding_backward(Stream& stream, const EmbeddingBackward& a);

namespace cpu {
/// Throws Error(kBadData) unless every id is in [least, vocabulary).
void check_ids(std::span<const int32_t> ids, int32_t least, int64_t vocabulary);
void embedding_forward(ThreadPool& threads, const EmbeddingForward& a);
void embedding_backward(ThreadPool& threads, const EmbeddingBackward& a);
}  // namespace cpu
namespace gpu {
void embedding_forward(Stream& stream, const EmbeddingForward& a);
void embedding_backward(Stream& stream, const EmbeddingBackward& a);
}  // namespace gpu

}  // namespace tessera
