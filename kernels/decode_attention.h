#pragma once

#include <algorithm>
#include <array>
#include <span>

#include "kernels/attention.h"
#include "kernels/sparse_attention.h"

namespace tessera {

/// Decoding: one new token of one sequence against the keys and values that a cache kept. All
/// formulas are those of training, so that position p gets what the training forward gives it.
///
/// A cache holds, per KV group, rows of keys (with RoPE) and values, [groups, rows, d]. Global
/// groups keep every token, in pages of one block; local groups keep a window (WindowCache).
/// A step: append the new token's rows; then for global groups decode_select and
/// decode_attention and last page_gate, which makes the gate key once a page is complete, and with
/// a tree insert_page; for local groups WindowCache::spans and decode_attention.

/// Consecutive cache rows that the new token attends to.
struct CacheSpan {
  int32_t first_row;
  int32_t rows;  ///< 1 or more
};

/// Where a local group keeps its tokens: the first `sink_tokens` for good, the others in a ring.
/// The spare rows let up to `spare` tokens of a prompt be appended at once.
struct WindowCache {
  int64_t window;       ///< >= 1, the new token included
  int64_t sink_tokens;  ///< >= 0
  int64_t spare = 64;   ///< >= 0

  int64_t rows() const { return sink_tokens + window + spare; }
  int64_t row(int64_t position) const {
    if (position < sink_tokens) return position;
    return sink_tokens + (position - sink_tokens) % (window + spare);
  }
  /// What the token at `position` attends to: up to 3 spans in ascending order of position.
  /// Returns how many.
  int64_t spans(int64_t position, std::array<CacheSpan, 3>& to) const;
};

/// The running pool of the open part of a page, with (max, den, num) per group:
///   e = r . k0,  num = sum_j exp(e_j - max) k0_j,  den = sum_j exp(e_j - max),  kbar = num / den.
/// A part is block / gate_keys tokens; a token at a multiple of that opens a new one. kbar is
/// written when the token completes a part, which is what the function returns.
/// Source: dgsa 3.5; Milakov & Gimelshein 2018, arXiv:1805.02867.
struct PageGate {
  TensorView state;    ///< in and out [groups, d + 2], f32: max, den, num
  TensorView kbar;     ///< out [groups, d], dtype of k0: as in GatePoolForward
  ConstTensorView k0;  ///< [groups, d], f32 or bf16: keys of the new token without RoPE
  ConstTensorView r;   ///< [groups, d], f32
  int64_t position;    ///< of the new token in its sequence
  int64_t part;        ///< tokens, >= 1
};
bool page_gate(Stream& stream, const PageGate& a);

/// Scores the complete pages, chooses as score_select does, and lists what the new token attends
/// to in ascending order: forced pages and chosen pages with their log gates.
struct DecodeSelect {
  BlockSelection selection;   ///< out, of one token: [groups, 1, k + 1] and [groups, 1]
  TensorView spans;           ///< out [groups, sink_blocks + k + window_blocks, 2], i32: CacheSpan
  TensorView log_gates;       ///< out [groups, sink_blocks + k + window_blocks], f32
  TensorView counts;          ///< out [groups], i32: spans in use
  TensorView scores;          ///< scratch [groups, max_pages], f32
  ConstTensorView qt;         ///< [groups, gate_dim], f32: gate query of the new token
  ConstTensorView kt;         ///< [groups, max_pages * gate_keys, gate_dim], f32
  ConstTensorView page_rows;  ///< [max_pages], i32: first cache row of each page of the sequence
  int64_t position;           ///< of the new token, whose rows are in the cache already
  int64_t block;              ///< tokens per page
  BlockRule rule;
  int64_t gate_keys;
  GateRamp ramp;
  TreeSearch tree = {};
  ConstTensorView nodes = {};  ///< [groups, tree_rows(max_pages), gate_dim], f32: InsertPage
};
void decode_select(Stream& stream, const DecodeSelect& a);

/// o_h = sum_j exp(s_j - L_h) v_j over the listed rows, s_j = scale q_h . k_j + log gate of the
/// span, L_h = log(exp(a_h) + sum_j exp s_j).
struct DecodeAttention {
  TensorView o;               ///< out [heads, d], dtype of q; only heads of `groups` are written
  TensorView lse;             ///< out [heads], f32: L; optional
  ConstTensorView q;          ///< [heads, d], f32 or bf16, with RoPE
  ConstTensorView k;          ///< [groups, rows, d], dtype of q: the cache of these groups
  ConstTensorView v;          ///< [groups, rows, d]
  ConstTensorView spans;      ///< [groups, most, 2], i32: CacheSpan
  ConstTensorView log_gates;  ///< [groups, most], f32; optional: 0
  ConstTensorView counts;     ///< [groups], i32: spans in use, at least 1
  std::span<const int32_t> groups;
  int64_t kv_heads;  ///< of the layer: head h belongs to group h / (heads / kv_heads)
  float scale;       ///< > 0
  ConstTensorView sink_logits = {};  ///< [heads], f32; optional
};
void decode_attention(Stream& stream, const DecodeAttention& a);

namespace cpu {
bool page_gate(ThreadPool& threads, const PageGate& a);
void decode_select(ThreadPool& threads, const DecodeSelect& a);
void decode_attention(ThreadPool& threads, const DecodeAttention& a);
}  // namespace cpu
namespace gpu {
bool page_gate(Stream& stream, const PageGate& a);
void decode_select(Stream& stream, const DecodeSelect& a);
void decode_attention(Stream& stream, const DecodeAttention& a);
}  // namespace gpu

}  // namespace tessera
