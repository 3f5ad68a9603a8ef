#pragma once

#include "kernels/block_selection.h"
#include "kernels/decode_attention.h"
#include "kernels/segment_grid.cuh"

namespace tessera::gpu {

/// Whether tokens with so many candidates go down the tree.
__host__ __device__ constexpr bool needs_tree(const TreeSearch& tree, int64_t candidates,
                                              int64_t kept) {
  return tree.enabled() && tree.first_level(candidates, kept) > 0;
}

/// The part of score_select that has a tree: builds the trees of all segments in a.nodes, and fills
/// the rows of all tokens that need one.
void select_in_trees(Stream& stream, const ScoreSelect& a, const GridView& grid);

/// The part of decode_select that has a tree: fills the selection of those tokens that need one.
void select_pages_in_tree(Stream& stream, const DecodeSelect& a);

}  // namespace tessera::gpu
