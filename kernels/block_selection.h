#pragma once

#include "kernels/segment_grid.h"

namespace tessera {

/// Which blocks a token of a global group always sees, and how many it may choose.
/// With own block b (within the segment): forced are the first `sink_blocks` blocks and
/// b - window_blocks + 1 .. b; candidates are all other blocks before b.
struct BlockRule {
  int64_t sink_blocks;    ///< sb >= 0
  int64_t window_blocks;  ///< wb >= 1
  int64_t kept;           ///< k >= 1, blocks chosen at most
};

/// The choice of every token: k slots in ascending order of block, then the runner-up.
/// Block numbers are within the segment. Saved in forward, never recomputed.
struct BlockSelection {
  TensorView
      blocks;  ///< [groups, tokens, k + 1], i32; unused slots -1; slot k: (k+1)-th best or -1
  TensorView scores;  ///< [groups, tokens, k + 1], f32: z of these blocks; 0 in unused slots
  TensorView counts;  ///< [groups, tokens], i32: |S_i|
  int64_t kept() const { return blocks.shape()[2] - 1; }
};

/// Scores all candidates and keeps the best k; ties prefer the larger block number.
///   z_ib = log sum_{a < gate_keys} exp(qt_i . kt_{b, a} / sqrt(gate_dim))  (gate_keys 1: no exp).
/// Each dot product is summed in one fixed order, so that any tiling and decoding agree bit by bit.
/// Source: dgsa definition 2.2.
struct ScoreSelect {
  BlockSelection selection;  ///< out
  ConstTensorView qt;        ///< [groups, tokens, gate_dim], f32: gate queries
  ConstTensorView kt;        ///< [groups, max_blocks * gate_keys, gate_dim], f32: gate keys
  const SegmentGrid& grid;
  BlockRule rule;
  int64_t gate_keys;  ///< gate keys per block
};
void score_select(Stream& stream, const ScoreSelect& a);

/// The same choice as lists for kernels. Per tile of 16 tokens: ascending blocks that any of its
/// tokens chose, with a mask of which (bit t: token t of the tile). Per block: ascending tiles.
/// Forced blocks are implicit and never listed. Entries of group c and tile i are
/// [tile_offsets[c, i], tile_offsets[c, i + 1]) of tile_blocks[c] and tile_masks[c];
/// those of block b (numbered over all segments) likewise in block_tiles and block_masks.
struct BlockLists {
  TensorView tile_offsets;   ///< [groups, max_tiles + 1], i32
  TensorView tile_blocks;    ///< [groups, capacity], i32: block within the segment
  TensorView tile_masks;     ///< [groups, capacity], u16
  TensorView block_offsets;  ///< [groups, max_blocks + 1], i32
  TensorView block_tiles;    ///< [groups, capacity], i32: tile over all segments
  TensorView block_masks;    ///< [groups, capacity], u16
};
/// Entries per group that any selection fits into: shapes alone decide.
int64_t block_list_capacity(int64_t tokens, int64_t segments, int64_t block, int64_t kept);

struct BuildBlockLists {
  BlockLists lists;          ///< out
  BlockSelection selection;  ///< in
  const SegmentGrid& grid;
};
void build_block_lists(Stream& stream, const BuildBlockLists& a);

/// How many tokens of a batch choose among at least two blocks (|S_i| >= 2): N of the gate losses.
/// A pure function of the segments; `starts` is in host memory.
int64_t count_gate_rows(std::span<const int32_t> starts, int64_t block, const BlockRule& rule);

namespace cpu {
void score_select(ThreadPool& threads, const ScoreSelect& a);
void build_block_lists(ThreadPool& threads, const BuildBlockLists& a);
}  // namespace cpu

}  // namespace tessera
