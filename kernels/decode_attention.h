#pragma once

#include <algorithm>
#include <array>
#include <span>

#include "kernels/attention.h"
#include "kernels/sparse_attention.h"

namespace tessera {

/// Decoding: one new token of each of several sequences, each against the keys and values that a
/// cache kept of its own. All formulas are those of training, so that position p gets what the
/// training forward gives it, whatever other sequences are beside it: no order of additions depends
/// on them.
///
/// A cache holds, per KV group and sequence, rows of keys (with RoPE) and values,
/// [groups, sequences, rows, d]. Global groups keep every token, in pages of one block; local
/// groups keep a window (WindowCache). Sequences are at positions of their own; one at position 0
/// begins anew in a cache that another has used. A step: append the new tokens' rows; then for
/// global groups decode_select and decode_attention and last page_gate, which makes the gate key of
/// a page that is complete, and with a tree insert_page; for local groups WindowCache::spans and
/// decode_attention.

/// Consecutive cache rows that a new token attends to.
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

/// The running pool of the open part of a page, with (max, den, num) per group and sequence:
///   e = r . k0,  num = sum_j exp(e_j - max) k0_j,  den = sum_j exp(e_j - max),  kbar = num / den.
/// A part is block / gate_keys tokens; a token at a multiple of that opens a new one. kbar is
/// written where the token completes a part; other rows of it stay as they are.
/// Source: dgsa 3.5; Milakov & Gimelshein 2018, arXiv:1805.02867.
struct PageGate {
  TensorView state;           ///< in and out [groups, sequences, d + 2], f32: max, den, num
  TensorView kbar;            ///< out [groups, sequences, d], dtype of k0: as in GatePoolForward
  ConstTensorView k0;         ///< [groups, sequences, d], f32 or bf16: new keys without RoPE
  ConstTensorView r;          ///< [groups, d], f32
  ConstTensorView positions;  ///< [sequences], i32: of the new tokens in their sequences, >= 0
  int64_t part;               ///< tokens, >= 1
};
void page_gate(Stream& stream, const PageGate& a);

/// Scores the complete pages, chooses as score_select does, and lists what each new token attends
/// to in ascending order: forced pages and chosen pages with their log gates. Throws, or on a GPU
/// stops, when a position is beyond the pages.
struct DecodeSelect {
  BlockSelection selection;   ///< out, of one token per sequence: [groups, sequences, k + 1]
  TensorView spans;           ///< out [groups, sequences, most, 2], i32: CacheSpan;
                              ///< most = sink_blocks + k + window_blocks
  TensorView log_gates;       ///< out [groups, sequences, most], f32
  TensorView counts;          ///< out [groups, sequences], i32: spans in use
  TensorView scores;          ///< scratch [groups, sequences, max_pages], f32
  ConstTensorView qt;         ///< [groups, sequences, gate_dim], f32: gate queries
  ConstTensorView kt;         ///< [groups, sequences, max_pages * gate_keys, gate_dim], f32
  ConstTensorView page_rows;  ///< [sequences, max_pages], i32: first cache row of each page
  ConstTensorView positions;  ///< [sequences], i32: of tokens whose rows are in the cache already
  int64_t block;              ///< tokens per page
  BlockRule rule;
  int64_t gate_keys;
  GateRamp ramp;
  TreeSearch tree = {};
  ConstTensorView nodes = {};  ///< [groups, sequences, tree_rows(max_pages), gate_dim], f32
};
void decode_select(Stream& stream, const DecodeSelect& a);

/// o_h = sum_j exp(s_j - L_h) v_j over the listed rows, s_j = scale q_h . k_j + log gate of the
/// span, L_h = log(exp(a_h) + sum_j exp s_j). Throws, or on a GPU stops, when a span lies outside
/// of the cache.
struct DecodeAttention {
  TensorView o;       ///< out [sequences, heads, d], dtype of q; only heads of `groups` are written
  TensorView lse;     ///< out [sequences, heads], f32: L; optional
  ConstTensorView q;  ///< [sequences, heads, d], f32 or bf16, with RoPE
  ConstTensorView k;  ///< [groups, sequences, rows, d], dtype of q: the cache of these groups
  ConstTensorView v;  ///< [groups, sequences, rows, d]
  ConstTensorView spans;  ///< [groups or 1, sequences, most, 2], i32: CacheSpan; 1: of all groups
  ConstTensorView log_gates;  ///< [groups or 1, sequences, most], f32; optional: 0
  ConstTensorView counts;     ///< [groups or 1, sequences], i32: spans in use, at least 1
  std::span<const int32_t> groups;
  int64_t kv_heads;  ///< of the layer: head h belongs to group h / (heads / kv_heads)
  float scale;       ///< > 0
  ConstTensorView sink_logits = {};  ///< [heads], f32; optional
};
void decode_attention(Stream& stream, const DecodeAttention& a);

namespace cpu {
void page_gate(ThreadPool& threads, const PageGate& a);
void decode_select(ThreadPool& threads, const DecodeSelect& a);
void decode_attention(ThreadPool& threads, const DecodeAttention& a);
}  // namespace cpu
namespace gpu {
void page_gate(Stream& stream, const PageGate& a);
void decode_select(Stream& stream, const DecodeSelect& a);
void decode_attention(Stream& stream, const DecodeAttention& a);
}  // namespace gpu

}  // namespace tessera
