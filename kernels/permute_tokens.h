#pragma once

#include "kernels/core/tensor_view.h"

namespace tessera {

/// Stable counting sort of (token, slot) pairs by expert: rows of expert e are
/// [offsets[e], offsets[e + 1]), ordered by token. With a `capacity` an expert gets its first so
/// many pairs and the others are dropped: they have no row, so they add nothing to the output and
/// their combine weights have gradient 0; the weights of the kept ones stay as they are. The rows
/// are the first offsets[experts] of source_of, the others are not written. Here and below, indices
/// out of range throw on the CPU, before anything is written; a GPU leaves their rows and pairs
/// out.
struct SortByExpert {
  TensorView row_of;        ///< out [tokens, k], i32: row of each pair; -1: dropped
  TensorView source_of;     ///< out [tokens * k], i32: token * k + slot of each row
  TensorView offsets;       ///< out [experts + 1], i32
  ConstTensorView experts;  ///< [tokens, k], i32, each in [0, experts); distinct within a token
  int64_t capacity = 0;     ///< most rows of one expert; 0: all, nothing is dropped
  TensorView dropped = {};  ///< in and out [1], f32: number of dropped pairs; added to; optional
};
void sort_by_expert(Stream& stream, const SortByExpert& a);
/// What a GPU has counters for, at most.
inline constexpr int64_t kGpuMostSortedExperts = 2048;

/// Permute: y[r] = x[source_of[r] / k]. With `row_of`, which says the same the other way round, a
/// GPU reads every row of x once, not once for each of its rows of y.
struct GatherRows {
  TensorView y;                 ///< out [rows, dim], dtype of x
  ConstTensorView x;            ///< [tokens, dim], f32 or bf16
  ConstTensorView source_of;    ///< [rows], i32
  int64_t slots;                ///< k
  ConstTensorView row_of = {};  ///< [tokens, k], i32: inverse of source_of; -1: dropped; optional
};
void gather_rows(Stream& stream, const GatherRows& a);

/// Rows that came from the ranks of an expert group lie by (source, local expert, token); experts
/// want them by (local expert, source, token): row r is received row order[r]. The rows are the
/// first offsets[local experts] of order, the others are not written.
struct MergeExpertRows {
  TensorView order;    ///< out [capacity], i32
  TensorView offsets;  ///< out [local experts + 1], i32: rows of e are [offsets[e], offsets[e+1])
  ConstTensorView counts;  ///< [sources, local experts], i32: rows of each; at most capacity
};
void merge_expert_rows(Stream& stream, const MergeExpertRows& a);

/// y[order[r]] = x[r]: the inverse, and the backward, of GatherRows with one slot. Rows of y that
/// order does not name stay as they are.
struct ScatterRows {
  TensorView y;           ///< in and out [any number, dim], dtype of x
  ConstTensorView x;      ///< [rows, dim], f32 or bf16
  ConstTensorView order;  ///< [rows], i32; distinct
};
void scatter_rows(Stream& stream, const ScatterRows& a);

/// Combine, and the backward of GatherRows: y[t] = base[t] + sum_s x[row_of[t, s]], in slot order,
/// summed in f32; dropped pairs are left out.
struct GatherSum {
  TensorView y;               ///< out [tokens, dim], dtype of x; may alias base
  ConstTensorView x;          ///< [rows, dim], f32 or bf16
  ConstTensorView row_of;     ///< [tokens, k], i32; -1: dropped
  ConstTensorView base = {};  ///< [tokens, dim], dtype of x; optional (0)
};
void gather_sum(Stream& stream, const GatherSum& a);

/// One number per pair, to rows and back: to rows, y[r] = x[source_of[r]]; `inverse`:
/// y[source_of[r]] = x[r], and 0 for pairs that have no row. Either is the backward of the other.
struct PermutePairs {
  TensorView y;               ///< out, f32: one element per row; `inverse`: per pair
  ConstTensorView x;          ///< f32: one element per pair; `inverse`: per row
  ConstTensorView source_of;  ///< [rows], i32; distinct; rows <= pairs
  bool inverse = false;
};
void permute_pairs(Stream& stream, const PermutePairs& a);

namespace cpu {
void sort_by_expert(ThreadPool& threads, const SortByExpert& a);
void gather_rows(ThreadPool& threads, const GatherRows& a);
void merge_expert_rows(ThreadPool& threads, const MergeExpertRows& a);
void scatter_rows(ThreadPool& threads, const ScatterRows& a);
void gather_sum(ThreadPool& threads, const GatherSum& a);
void permute_pairs(ThreadPool& threads, const PermutePairs& a);
}  // namespace cpu
namespace gpu {
void sort_by_expert(Stream& stream, const SortByExpert& a);
void gather_rows(Stream& stream, const GatherRows& a);
void merge_expert_rows(Stream& stream, const MergeExpertRows& a);
void scatter_rows(Stream& stream, const ScatterRows& a);
void gather_sum(Stream& stream, const GatherSum& a);
void permute_pairs(Stream& stream, const PermutePairs& a);
}  // namespace gpu

}  // namespace tessera
