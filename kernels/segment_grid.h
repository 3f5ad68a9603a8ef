#pragma once

#include "kernels/core/tensor_view.h"

namespace tessera {

/// Independent causal sequences (documents, or whole rows of a batch) laid end to end on the token
/// axis, each cut into tiles of 16 query tokens and blocks of `block` key tokens from its start.
/// Tile and block numbers run on over the segments: block b of segment s is block_starts[s] + b.
struct SegmentGrid {
  static constexpr int64_t kTile = 16;

  ConstTensorView starts;        ///< [segments + 1], i32, ascending from 0 to tokens; may be empty
  ConstTensorView positions;     ///< [tokens], i32: distance from the start of the segment
  ConstTensorView tile_starts;   ///< [segments + 1], i32: first tile of each segment
  ConstTensorView block_starts;  ///< [segments + 1], i32: first block of each segment
  int64_t block;                 ///< B, tokens; a multiple of 16

  int64_t segments() const { return starts.shape()[0] - 1; }
  int64_t tokens() const { return positions.shape()[0]; }
  /// Bounds that depend on the shapes alone.
  int64_t max_tiles() const { return tokens() / kTile + segments(); }
  int64_t max_blocks() const { return tokens() / block + segments(); }
};

/// Fills positions, tile_starts and block_starts from starts.
struct BuildSegmentGrid {
  TensorView positions;     ///< out [tokens], i32
  TensorView tile_starts;   ///< out [segments + 1], i32
  TensorView block_starts;  ///< out [segments + 1], i32
  ConstTensorView starts;   ///< [segments + 1], i32: must ascend from 0 to tokens
  int64_t block;
};
SegmentGrid build_segment_grid(Stream& stream, const BuildSegmentGrid& a);

namespace cpu {
void build_segment_grid(ThreadPool& threads, const BuildSegmentGrid& a);
}

}  // namespace tessera
