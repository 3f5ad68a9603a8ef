#pragma once

#include <span>

#include "kernels/segment_grid.h"

namespace tessera {

/// Causal attention with an optional sliding window, for some KV groups of a layer. Within a
/// segment, token i (position p) sees token j (position r) iff r <= p and
/// (p - r < window or r < sink_tokens). window >= the longest segment is full causal attention.
/// `tokens` are the query rows of the grid, `keys` its key rows: on one of several ranks they are
/// different tokens. A query sees those of its keys that are in a run, its own always among them.
///   s_ij = scale q_i . k_j,   L_i = log(exp(a_h) + sum_j exp s_ij),   o_i = sum_j exp(s_ij - L_i)
///   v_j
/// a_h: sink logit of the head; -inf when sink_logits is absent. Products and sums in f32.
/// Head h belongs to group (h + first_head) / group_heads; heads of other groups are not touched.
/// Source: dgsa definition 2.1; Dao 2023, arXiv:2307.08691 for the online softmax.
struct AttentionForward {
  TensorView o;       ///< out [tokens, heads, d], dtype of q
  TensorView lse;     ///< out [heads, tokens], f32: L
  ConstTensorView q;  ///< [tokens, heads, d], f32 or bf16, with RoPE
  ConstTensorView k;  ///< [keys, kv_heads, d], with RoPE
  ConstTensorView v;  ///< [keys, kv_heads, d]
  const SegmentGrid& grid;
  std::span<const int32_t> groups;   ///< KV groups to compute
  int64_t window;                    ///< tokens, itself included; >= 1
  int64_t sink_tokens;               ///< >= 0
  float scale;                       ///< > 0
  ConstTensorView sink_logits = {};  ///< [heads], f32; optional
  int64_t group_heads = 0;           ///< heads of a whole group; 0: heads / kv_heads
  int64_t first_head = 0;            ///< heads of group 0 that come before head 0 of q
};
void attention_forward(Stream& stream, const AttentionForward& a);

/// Gradient of sum(do * o). Heads and groups outside of `groups` are not touched, nor are rows of
/// dk and dv beyond the last run. Keys that no query here sees, and groups without a head in q, get
/// 0.
struct AttentionBackward {
  TensorView dq;        ///< out [tokens, heads, d]; overwritten
  TensorView dk;        ///< out [keys, kv_heads, d]; overwritten
  TensorView dv;        ///< out [keys, kv_heads, d]; overwritten
  TensorView delta;     ///< scratch [heads, tokens], f32: do_i . o_i
  ConstTensorView d_o;  ///< [tokens, heads, d]
  ConstTensorView o;    ///< as in forward
  ConstTensorView lse;  ///< as in forward
  ConstTensorView q;
  ConstTensorView k;
  ConstTensorView v;
  const SegmentGrid& grid;
  std::span<const int32_t> groups;
  int64_t window;
  int64_t sink_tokens;
  float scale;
  ConstTensorView sink_logits = {};
  TensorView dsink_logits = {};  ///< in and out [heads], f32; added to; required with sink_logits
  int64_t group_heads = 0;       ///< as in forward
  int64_t first_head = 0;        ///< as in forward
};
void attention_backward(Stream& stream, const AttentionBackward& a);

/// Heads of at most this many numbers, a multiple of 8.
inline constexpr int64_t kMaxHeadDim = 256;

/// The checks of both kinds of attention, dense and sparse: they throw unless the tensors fit
/// together. `who` begins the sentence; sink_logits may be empty.
struct AttentionInputs {
  ConstTensorView q;
  ConstTensorView k;
  ConstTensorView v;
  ConstTensorView sink_logits;
  const SegmentGrid& grid;
  std::span<const int32_t> groups;
  float scale;
  int64_t group_heads;
  int64_t first_head;
};
void check_attention(const char* who, const AttentionInputs& a);
struct AttentionGradientTensors {
  ConstTensorView dq, dk, dv, delta;
  ConstTensorView d_o, o, lse, q, k;
  ConstTensorView sink_logits, dsink_logits;
};
void check_attention_gradient(const char* who, const AttentionGradientTensors& a);

namespace cpu {
void attention_forward(ThreadPool& threads, const AttentionForward& a);
void attention_backward(ThreadPool& threads, const AttentionBackward& a);
}  // namespace cpu
namespace gpu {
void attention_forward(Stream& stream, const AttentionForward& a);
void attention_backward(Stream& stream, const AttentionBackward& a);
}  // namespace gpu

}  // namespace tessera
