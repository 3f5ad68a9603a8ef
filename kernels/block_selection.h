#pragma once

#include <span>

#include "kernels/gate_tree.h"
#include "kernels/segment_grid.h"

namespace tessera {

/// Which blocks a token of a global group always sees, and how many it may choose.
/// With own block b (within the segment): forced are the first `sink_blocks` blocks and
/// b - window_blocks + 1 .. b; candidates are all other blocks before b.
struct BlockRule {
  int64_t sink_blocks;    ///< sb >= 0
  int64_t window_blocks;  ///< wb >= 1
  int64_t kept;           ///< k >= 1, blocks chosen at most

  /// Candidates of a token whose own block is `own`: sink_blocks .. own - window_blocks.
  constexpr int64_t candidates(int64_t own) const {
    const int64_t count = own - window_blocks + 1 - sink_blocks;
    return count > 0 ? count : 0;
  }
};

/// The choice of every token: k slots in ascending order of block, then the runner-up.
/// Block numbers are within the segment. Saved in forward, never recomputed.
/// blocks: unused slots are -1; slot k is the (k+1)-th best, or -1 when nothing was dropped.
struct BlockSelection {
  TensorView blocks;  ///< [groups, tokens, k + 1], i32
  TensorView scores;  ///< [groups, tokens, k + 1], f32: z of these blocks; 0 in unused slots
  TensorView counts;  ///< [groups, tokens], i32: |S_i|
  int64_t kept() const { return blocks.shape()[2] - 1; }
};

/// Throws unless a selection has these shapes and dtypes. `who` begins the sentence.
void check_selection(const BlockSelection& selection, int64_t groups, int64_t tokens,
                     const char* who);

/// Scores all candidates and keeps the best k; ties prefer the larger block number, and a score
/// that is NaN is below all others.
///   z_ib = log sum_{a < gate_keys} exp(qt_i . kt_{b, a} / sqrt(gate_dim))  (gate_keys 1: no exp)
/// exactly as gate_score.h computes it, so that any tiling, decoding and device agree bit by bit.
/// With a tree (TreeSearch) only the candidates that its beams reach are scored.
/// Source: dgsa definitions 2.2 and 2.3.
struct ScoreSelect {
  BlockSelection selection;  ///< out
  ConstTensorView qt;        ///< [groups, tokens, gate_dim], f32: gate queries
  ConstTensorView kt;        ///< [groups, max_blocks * gate_keys, gate_dim], f32: of whole segments
  const SegmentGrid& grid;
  BlockRule rule;
  int64_t gate_keys;  ///< gate keys per block; 1 with a tree
  TreeSearch tree = {};
  TensorView nodes = {};  ///< scratch [groups, tree_rows(max_blocks), gate_dim], f32; with a tree
};
void score_select(Stream& stream, const ScoreSelect& a);

/// The choice of one token, for decoding: the best of the candidates first_block + i with scores
/// z[i], by the rule of score_select. Fills blocks and scores, both [k + 1], as a row of a
/// BlockSelection and returns |S|.
int64_t choose_blocks(std::span<const float> z, int64_t first_block, std::span<int32_t> blocks,
                      std::span<float> scores);

/// The same choice as lists for kernels. Per tile of 16 tokens: ascending blocks that any of its
/// tokens chose, with a mask of which. Bit t of a mask is the token at a position with
/// position % 16 = t, also in a tile of which a piece holds a part. Per block: ascending tiles.
/// Forced blocks are implicit and never listed. Entries of group c and tile i are
/// [tile_offsets[c, i], tile_offsets[c, i + 1]) of tile_blocks[c] and tile_masks[c];
/// those of block b (numbered over all segments) likewise in block_tiles and block_masks.
/// Offsets beyond the last tile or block repeat the last one.
struct BlockLists {
  TensorView tile_offsets;   ///< [groups, max_tiles + 1], i32
  TensorView tile_blocks;    ///< [groups, capacity], i32: block within the segment
  TensorView tile_masks;     ///< [groups, capacity], u16
  TensorView block_offsets;  ///< [groups, max_blocks + 1], i32
  TensorView block_tiles;    ///< [groups, capacity], i32: tile over all pieces
  TensorView block_masks;    ///< [groups, capacity], u16
};

/// Entries per group that any selection fits into, however `tokens` are cut into segments:
///   sum_{t = 0}^{ceil(tokens / 16) - 1} min(16 k, candidates(floor(16 t / block))).
/// One long segment needs most, because more blocks lie before its tiles: the summand never
/// decreases in t, is 0 for the first tile of a segment, and cutting starts again from t = 0.
int64_t block_list_capacity(int64_t tokens, int64_t block, const BlockRule& rule);

/// The same for queries that are pieces, at any position, of segments of at most `segment_tokens`:
///   tiles min(16 k, candidates(last block of such a segment)),   tiles: max_tiles of the grid.
int64_t piece_list_capacity(int64_t tiles, int64_t segment_tokens, int64_t block,
                            const BlockRule& rule);

/// Throws, or on a GPU stops, when an entry is not a block before its token's own, or the capacity
/// is too small.
struct BuildBlockLists {
  BlockLists lists;          ///< out
  BlockSelection selection;  ///< in
  const SegmentGrid& grid;
};
void build_block_lists(Stream& stream, const BuildBlockLists& a);

/// How many tokens of a batch choose among at least two blocks (|S_i| >= 2): N of the gate losses.
/// A pure function of the segments or pieces; `starts` and `firsts` (SegmentGrid; empty: 0) are in
/// host memory.
int64_t count_gate_rows(std::span<const int32_t> starts, int64_t block, const BlockRule& rule,
                        std::span<const int32_t> firsts = {});

namespace cpu {
void score_select(ThreadPool& threads, const ScoreSelect& a);
void build_block_lists(ThreadPool& threads, const BuildBlockLists& a);
}  // namespace cpu
namespace gpu {
void score_select(Stream& stream, const ScoreSelect& a);
void build_block_lists(Stream& stream, const BuildBlockLists& a);
}  // namespace gpu

}  // namespace tessera
