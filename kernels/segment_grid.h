#pragma once

#include <algorithm>
#include <span>

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

/// Where a tile or a block of a grid in host memory lies.
struct GridRange {
  int64_t segment;
  int64_t first;   ///< token
  int64_t tokens;  ///< 1 .. 16 or 1 .. block
  int64_t number;  ///< of the tile or block, within the segment
};

/// How many tiles and blocks there are: at most max_tiles and max_blocks.
inline int64_t tile_count(const SegmentGrid& grid) {
  return grid.tile_starts.as<int32_t>().back();
}
inline int64_t block_count(const SegmentGrid& grid) {
  return grid.block_starts.as<int32_t>().back();
}

/// Range `index` < tile_count or block_count of the segments that `range_starts` (tile_starts or
/// block_starts) numbers, each range `length` tokens long or what is left of its segment.
inline GridRange find_range(const SegmentGrid& grid, std::span<const int32_t> range_starts,
                            int64_t index, int64_t length) {
  const auto starts = grid.starts.as<int32_t>();
  // The last segment that starts here or before: an empty one never is.
  const auto after = std::upper_bound(range_starts.begin(), range_starts.end(), index);
  const auto segment = after - range_starts.begin() - 1;
  const int64_t number = index - range_starts[static_cast<size_t>(segment)];
  const int64_t first = starts[static_cast<size_t>(segment)] + number * length;
  const int64_t end = starts[static_cast<size_t>(segment) + 1];
  return {segment, first, std::min(length, end - first), number};
}
inline GridRange find_tile(const SegmentGrid& grid, int64_t tile) {
  return find_range(grid, grid.tile_starts.as<int32_t>(), tile, SegmentGrid::kTile);
}
inline GridRange find_block(const SegmentGrid& grid, int64_t block) {
  return find_range(grid, grid.block_starts.as<int32_t>(), block, grid.block);
}

}  // namespace cpu

}  // namespace tessera
