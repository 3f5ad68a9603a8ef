#pragma once

#include <algorithm>
#include <cmath>
#include <span>

#include "kernels/block_selection.h"

namespace tessera {

/// The gate of a chosen block: G = 1 where nothing was dropped (no runner-up), else
///   G_ib = (1 - strength) + strength * clip((z_ib - tau_i) / width, 0, 1),  tau_i: runner-up's z.
struct GateRamp {
  float strength;          ///< lambda in [0, 1 - 2^-10]
  ConstTensorView widths;  ///< w, [groups], f32, nats, > 0
};

/// log G of a chosen block with score z where the runner-up's is tau. G = 1 gives 0 exactly.
inline float log_gate(float z, float tau, float strength, float width) {
  const float u = (z - tau) / width;
  if (u >= 1) return 0;
  return std::log((1 - strength) + strength * std::max(u, 0.0f));
}

/// Attention of global groups over forced blocks and chosen blocks:
///   s_ij = scale q_i . k_j + log G_{i, block(j)}   (log G = 0 on forced blocks), j <= i
///   L_i = log(exp(a_h) + sum_j exp s_ij),   o_i = sum_j exp(s_ij - L_i) v_j.
/// With everything chosen this is full causal attention. Rows and heads are those of kernels/
/// attention.h; here the keys of a segment with queries are one run from its first to at least its
/// last query's position. Throws, or on a GPU stops, unless they are; on a GPU that the lists
/// belong to the selection is known from the number of each token's blocks alone. Source: dgsa
/// definition 2.2.
struct SparseAttentionForward {
  TensorView o;       ///< out [tokens, heads, d]; only heads of `groups` are written
  TensorView lse;     ///< out [heads, tokens], f32: L
  ConstTensorView q;  ///< [tokens, heads, d], f32 or bf16, with RoPE
  ConstTensorView k;  ///< [keys, kv_heads, d], with RoPE
  ConstTensorView v;  ///< [keys, kv_heads, d]
  const SegmentGrid& grid;
  std::span<const int32_t> groups;  ///< KV groups; index c below is the place in this list
  BlockRule rule;
  const BlockSelection& selection;  ///< [groups, ...]
  const BlockLists& lists;
  GateRamp ramp;
  float scale;
  ConstTensorView sink_logits = {};  ///< [heads], f32; optional
  /// out [groups, tokens, g, k], f32; optional: log sum_{j in block} exp(scale q.k) of each chosen
  /// slot and head, without the gate; unused slots are not written, nor are heads that q lacks
  TensorView block_lse = {};
  int64_t group_heads = 0;  ///< g, heads of a whole group; 0: heads / kv_heads
  int64_t first_head = 0;   ///< heads of group 0 that come before head 0 of q
};
void sparse_attention_forward(Stream& stream, const SparseAttentionForward& a);

/// Gradient of sum(do * o): two kernels, query-major for dq and dlog_gate and key-major for dk and
/// dv, without atomics. dlog_gate_is = sum over heads and keys of slot s's block of dS. Rows of dk
/// and dv beyond the last run are not touched; keys that no query here sees get 0.
struct SparseAttentionBackward {
  TensorView dq;         ///< out [tokens, heads, d]; overwritten for heads of `groups`
  TensorView dk;         ///< out [keys, kv_heads, d]; overwritten for `groups`
  TensorView dv;         ///< out [keys, kv_heads, d]; overwritten for `groups`
  TensorView dlog_gate;  ///< out [groups, tokens, k], f32; overwritten; unused slots 0
  TensorView delta;      ///< scratch [heads, tokens], f32
  ConstTensorView d_o;   ///< [tokens, heads, d]
  ConstTensorView o;
  ConstTensorView lse;
  ConstTensorView q;
  ConstTensorView k;
  ConstTensorView v;
  const SegmentGrid& grid;
  std::span<const int32_t> groups;
  BlockRule rule;
  const BlockSelection& selection;
  const BlockLists& lists;
  GateRamp ramp;
  float scale;
  ConstTensorView sink_logits = {};
  TensorView dsink_logits = {};  ///< in and out [heads], f32; added to; required with sink_logits
  int64_t group_heads = 0;       ///< as in forward
  int64_t first_head = 0;        ///< as in forward
};
void sparse_attention_backward(Stream& stream, const SparseAttentionBackward& a);

namespace cpu {
void sparse_attention_forward(ThreadPool& threads, const SparseAttentionForward& a);
void sparse_attention_backward(ThreadPool& threads, const SparseAttentionBackward& a);
}  // namespace cpu
namespace gpu {
void sparse_attention_forward(Stream& stream, const SparseAttentionForward& a);
void sparse_attention_backward(Stream& stream, const SparseAttentionBackward& a);
}  // namespace gpu

}  // namespace tessera
