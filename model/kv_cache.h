#pragma once

#include <optional>

#include "kernels/core/buffer.h"
#include "kernels/decode_attention.h"

namespace tessera {

/// What the gate of a layer remembers of some sequences.
struct GateCache {
  TensorView state;  ///< [groups, sequences, d + 2], f32: running pools of open pages (PageGate)
  TensorView kbar;   ///< [groups, sequences, d]: pooled keys of the parts completed last
  TensorView kt;     ///< [groups, sequences, pages * gate_keys, gate_dim], f32: gate keys
  TensorView nodes;  ///< [groups, sequences, tree_rows(pages), gate_dim], f32; empty without a tree
  TensorView page_rows;  ///< [sequences, pages], i32: first cache row of each page
};

/// Keys and values of some sequences in one layer: all tokens for global groups, in pages of one
/// block; a ring for local groups. Owns its memory. A sequence that is at position 0 begins anew,
/// whatever was in its place before.
struct AttentionCache {
  Buffer buffer;
  TensorView global_k;  ///< [global groups, sequences, tokens, d]; empty without global groups
  TensorView global_v;
  TensorView local_k;  ///< [local groups, sequences, window.rows(), d]; empty without local groups
  TensorView local_v;
  WindowCache window;             ///< the same in all layers
  std::optional<GateCache> gate;  ///< while the gate chooses
};

/// How many sequences there is room for, of how many tokens each.
struct CacheSize {
  int64_t sequences;
  int64_t tokens;
};

}  // namespace tessera
