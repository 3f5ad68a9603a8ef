#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/segment_grid.h"

/// A grid as kernels see it, and the device twins of what segment_grid.h has in namespace cpu:
/// where a tile, a block or a part of a piece lies. Every lane that asks searches for itself: a
/// binary search over numbers that the first cache holds.
namespace tessera::gpu {

/// The last of the `size` ranges bounded by starts [size + 1] that begins at `index` or before.
__device__ __forceinline__ int range_of(const int32_t* starts, int size, int index) {
  int low = 0;
  int high = size;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (starts[middle] <= index ? low : high) = middle;
  }
  return low;
}

/// Pieces or runs: cpu::Stretches in device memory.
struct Stretches {
  const int32_t* starts;    ///< [size + 1]
  const int32_t* firsts;    ///< [size], or null: all 0
  const int32_t* segments;  ///< [size], or null: stretch i is segment i
  int size;

  __device__ int row(int i) const { return starts[i]; }
  __device__ int count(int i) const { return starts[i + 1] - starts[i]; }
  __device__ int first(int i) const { return firsts == nullptr ? 0 : firsts[i]; }
  __device__ int end(int i) const { return first(i) + count(i); }
  __device__ int origin(int i) const { return row(i) - first(i); }
  __device__ int segment(int i) const { return segments == nullptr ? i : segments[i]; }
  /// Stretches of a segment: [begin_of(segment), begin_of(segment + 1)).
  __device__ int begin_of(int segment) const {
    if (segments == nullptr) return segment;
    int low = 0;
    for (int left = size; left > 0;) {
      const int half = left / 2;
      const bool before = segments[low + half] < segment;
      low += before ? half + 1 : 0;
      left = before ? left - half - 1 : half;
    }
    return low;
  }
  /// The stretch of a segment that holds a position, or -1.
  __device__ int find(int segment, int position) const {
    for (int i = begin_of(segment); i < size && this->segment(i) == segment; ++i) {
      if (position >= first(i) && position < end(i)) return i;
    }
    return -1;
  }
  /// How many numbers of a stretch's parts there are besides one per `length` rows.
  __host__ __device__ int spare() const { return firsts == nullptr ? 1 : 2; }
};

/// A SegmentGrid in device memory.
struct GridView {
  Stretches pieces;
  Stretches runs;
  const int32_t* tile_starts;   ///< [pieces + 1]
  const int32_t* block_starts;  ///< [segments + 1]
  int segments;
  int tokens;
  int keys;
  int block;
  int max_blocks;

  __device__ int tile_count() const { return tile_starts[pieces.size]; }
  __device__ int block_count() const { return block_starts[segments]; }
};

inline const int32_t* numbers_or_null(const ConstTensorView& x) {
  return x.empty() ? nullptr : x.as<int32_t>().data();
}
/// For the launch: takes no number from device memory.
inline GridView view_of(const SegmentGrid& grid) {
  const Stretches pieces{grid.starts.as<int32_t>().data(), numbers_or_null(grid.firsts),
                         numbers_or_null(grid.piece_segments), static_cast<int>(grid.pieces())};
  Stretches runs = pieces;
  if (!grid.run_starts.empty()) {
    runs = {grid.run_starts.as<int32_t>().data(), numbers_or_null(grid.run_firsts),
            numbers_or_null(grid.run_segments), static_cast<int>(grid.run_starts.shape()[0]) - 1};
  }
  return {.pieces = pieces,
          .runs = runs,
          .tile_starts = grid.tile_starts.as<int32_t>().data(),
          .block_starts = grid.block_starts.as<int32_t>().data(),
          .segments = static_cast<int>(grid.segments()),
          .tokens = static_cast<int>(grid.tokens()),
          .keys = static_cast<int>(grid.keys()),
          .block = static_cast<int>(grid.block),
          .max_blocks = static_cast<int>(grid.max_blocks())};
}

/// As cpu::GridRange.
struct GridRange {
  int segment;
  int first;     ///< row of its first token or key
  int tokens;    ///< 1 .. 16, or 0 .. block
  int number;    ///< of the tile or block, within the segment
  int position;  ///< of its first token
};

/// Tile `tile` < tile_count.
__device__ __forceinline__ GridRange find_tile(const GridView& grid, int tile) {
  constexpr int kTile = SegmentGrid::kTile;
  const Stretches& pieces = grid.pieces;
  const int piece = range_of(grid.tile_starts, pieces.size, tile);
  const int number = pieces.first(piece) / kTile + tile - grid.tile_starts[piece];
  const int position = std::max(pieces.first(piece), number * kTile);
  const int end = std::min(pieces.end(piece), (number + 1) * kTile);
  return {pieces.segment(piece), pieces.origin(piece) + position, end - position, number, position};
}

/// Block `block` < block_count: as many of its keys as follow its first key in one run. No tokens
/// when that key is not here.
__device__ __forceinline__ GridRange find_block(const GridView& grid, int block) {
  const int segment = range_of(grid.block_starts, grid.segments, block);
  const int number = block - grid.block_starts[segment];
  const int position = number * grid.block;
  const int run = grid.runs.find(segment, position);
  if (run < 0) return {segment, 0, 0, number, position};
  const int keys = std::min(grid.block, grid.runs.end(run) - position);
  return {segment, grid.runs.origin(run) + position, keys, number, position};
}

/// A part of a piece or a run, as cpu::StretchPart.
struct StretchPart {
  int stretch;
  int first;  ///< position
  int count;  ///< may be 0
};
/// Parts of stretches, cut where the position is a multiple of `length`, have numbers below this:
/// for the launch, where `rows` are those of their tensors.
inline int64_t part_bound(const Stretches& stretches, int64_t rows, int64_t length) {
  return rows / length + int64_t{stretches.spare()} * stretches.size;
}
__device__ __forceinline__ StretchPart find_part(const Stretches& stretches, int length,
                                                 int number) {
  const int spare = stretches.spare();
  int low = 0;
  int high = stretches.size;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (stretches.row(middle) / length + spare * middle <= number ? low : high) = middle;
  }
  const int cut =
      stretches.first(low) / length + number - stretches.row(low) / length - spare * low;
  const int first = std::max(stretches.first(low), cut * length);
  const int end = std::min(stretches.end(low), (cut + 1) * length);
  return {low, first, std::max(0, end - first)};
}

}  // namespace tessera::gpu
