#pragma once

#include <optional>

#include "kernels/core/buffer.h"
#include "kernels/decode_attention.h"

namespace tessera {

/// What the gate of a layer remembers of one sequence.
struct GateCache {
  TensorView state;      ///< [groups, d + 2], f32: running pool of the open page (PageGate)
  TensorView kbar;       ///< [groups, d]: pooled key of the part that was completed last
  TensorView kt;         ///< [groups, pages * gate_keys, gate_dim], f32: gate keys
  TensorView nodes;      ///< [groups, tree_rows(pages), gate_dim], f32; empty without a tree
  TensorView page_rows;  ///< [pages], i32: first cache row of each page
};

/// Keys and values of one sequence in one layer: all tokens for global groups, in pages of one
/// block; a ring for local groups. Owns its memory.
struct AttentionCache {
  Buffer buffer;
  TensorView global_k;  ///< [global groups, tokens, d]; empty without global groups
  TensorView global_v;
  TensorView local_k;  ///< [local groups, window.rows(), d]; empty without local groups
  TensorView local_v;
  WindowCache window;
  std::optional<GateCache> gate;  ///< while the gate chooses
};

}  // namespace tessera
