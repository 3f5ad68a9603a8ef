#pragma once

#include <algorithm>
#include <span>

#include "kernels/core/tensor_view.h"

namespace tessera {

/// Independent causal sequences (documents, or whole rows of a batch), cut into tiles of 16 query
/// tokens and blocks of `block` key tokens from their start. Tile and block numbers run on over the
/// segments: block b of segment s is block_starts[s] + b.
///
/// On one rank the segments lie end to end on the token axis, and the fields up to `block` say it
/// all. A rank that shares the sequences with others has some of their tokens as queries, and
/// other, usually more, of them as keys:
/// * a *piece* is a range of consecutive positions of a segment in consecutive rows of the query
///   tensors; tiles are numbered over the pieces. A tile holds the tokens of a piece whose
///   positions have the same floor(position / 16): a piece may begin and end with a part of a tile,
///   and a tile still lies in one block.
/// * a *run* is the same in the rows of the key tensors. Which key a query sees follows from their
///   positions alone, never from rows.
/// Pieces and runs are in ascending order of segment and then of position, and those of a segment
/// do not overlap. They may be empty; what is left over at the end repeats the last segment, at no
/// row.
struct SegmentGrid {
  static constexpr int64_t kTile = 16;

  ConstTensorView starts;        ///< [pieces + 1], i32: rows of each piece, from 0 to tokens
  ConstTensorView positions;     ///< [tokens], i32: distance from the start of the segment
  ConstTensorView tile_starts;   ///< [pieces + 1], i32: first tile of each piece
  ConstTensorView block_starts;  ///< [segments + 1], i32: first block of each whole segment
  int64_t block;                 ///< B, tokens; a multiple of 16

  // What is not given says that every segment is one piece from position 0, and that the runs are
  // the pieces: keys have the rows of queries.
  ConstTensorView firsts = {};          ///< [pieces], i32: position of the first token of each
  ConstTensorView piece_segments = {};  ///< [pieces], i32, never descending
  ConstTensorView run_starts = {};      ///< [runs + 1], i32: rows of each run, from 0
  ConstTensorView run_firsts = {};      ///< [runs], i32: position of the first key of each
  ConstTensorView run_segments = {};    ///< [runs], i32, never descending
  int64_t key_rows = 0;                 ///< of the key tensors, the runs' or more; 0: tokens()

  int64_t pieces() const { return starts.shape()[0] - 1; }
  int64_t segments() const { return block_starts.shape()[0] - 1; }
  int64_t tokens() const { return positions.shape()[0]; }
  int64_t keys() const { return key_rows > 0 ? key_rows : tokens(); }
  /// Bounds that depend on the shapes alone. max_blocks holds where the key tensors have room for
  /// whole segments.
  int64_t max_tiles() const { return tokens() / kTile + (firsts.empty() ? 1 : 2) * pieces(); }
  int64_t max_blocks() const { return keys() / block + segments(); }
};

/// Fills positions, tile_starts and block_starts from starts, for one rank. Throws unless starts is
/// as it must be; on a GPU the kernel stops instead (core/device_check.cuh).
struct BuildSegmentGrid {
  TensorView positions;     ///< out [tokens], i32
  TensorView tile_starts;   ///< out [segments + 1], i32
  TensorView block_starts;  ///< out [segments + 1], i32
  ConstTensorView starts;   ///< [segments + 1], i32: must ascend from 0 to tokens
  int64_t block;
};
SegmentGrid build_segment_grid(Stream& stream, const BuildSegmentGrid& a);

/// The grid of one of several ranks: fills positions and tile_starts from starts and firsts.
/// Throws, or on a GPU stops, unless pieces, runs and blocks are as SegmentGrid describes them.
struct BuildShardedGrid {
  TensorView positions;            ///< out [tokens], i32
  TensorView tile_starts;          ///< out [pieces + 1], i32
  ConstTensorView starts;          ///< [pieces + 1], i32
  ConstTensorView firsts;          ///< [pieces], i32
  ConstTensorView piece_segments;  ///< [pieces], i32
  ConstTensorView run_starts;      ///< [runs + 1], i32
  ConstTensorView run_firsts;      ///< [runs], i32
  ConstTensorView run_segments;    ///< [runs], i32
  ConstTensorView block_starts;    ///< [segments + 1], i32
  int64_t block;
  int64_t key_rows;
};
SegmentGrid build_sharded_grid(Stream& stream, const BuildShardedGrid& a);

namespace cpu {

void build_segment_grid(ThreadPool& threads, const BuildSegmentGrid& a);
void build_sharded_grid(ThreadPool& threads, const BuildShardedGrid& a);

/// Pieces or runs of a grid in host memory.
struct Stretches {
  std::span<const int32_t> starts;    ///< [size + 1]
  std::span<const int32_t> firsts;    ///< [size], or empty: all 0
  std::span<const int32_t> segments;  ///< [size], or empty: stretch i is segment i

  int64_t size() const { return static_cast<int64_t>(starts.size()) - 1; }
  int64_t row(int64_t i) const { return starts[static_cast<size_t>(i)]; }
  int64_t count(int64_t i) const { return row(i + 1) - row(i); }
  /// Positions of stretch i: [first, end).
  int64_t first(int64_t i) const { return firsts.empty() ? 0 : firsts[static_cast<size_t>(i)]; }
  int64_t end(int64_t i) const { return first(i) + count(i); }
  /// Row of position 0 if the stretch began there; may be negative.
  int64_t origin(int64_t i) const { return row(i) - first(i); }
  int64_t segment(int64_t i) const {
    return segments.empty() ? i : segments[static_cast<size_t>(i)];
  }
  /// Stretches of a segment: [begin_of(segment), begin_of(segment + 1)).
  int64_t begin_of(int64_t segment) const {
    if (segments.empty()) return segment;
    return std::lower_bound(segments.begin(), segments.end(), segment) - segments.begin();
  }
};
inline std::span<const int32_t> numbers_or_none(const ConstTensorView& x) {
  return x.empty() ? std::span<const int32_t>{} : x.as<int32_t>();
}
inline Stretches pieces_of(const SegmentGrid& grid) {
  return {grid.starts.as<int32_t>(), numbers_or_none(grid.firsts),
          numbers_or_none(grid.piece_segments)};
}
inline Stretches runs_of(const SegmentGrid& grid) {
  if (grid.run_starts.empty()) return pieces_of(grid);
  return {grid.run_starts.as<int32_t>(), numbers_or_none(grid.run_firsts),
          numbers_or_none(grid.run_segments)};
}

/// A part of a piece or a run.
struct StretchPart {
  int64_t stretch;
  int64_t first;  ///< position
  int64_t count;  ///< may be 0
};
/// Cuts stretches where the position is a multiple of `length` by a formula, so that tasks need no
/// list: parts are numbered 0 .. part_bound - 1, and some of them are empty.
int64_t part_bound(const Stretches& stretches, int64_t length);
StretchPart find_part(const Stretches& stretches, int64_t length, int64_t number);

/// Where a tile or a block of a grid in host memory lies.
struct GridRange {
  int64_t segment;
  int64_t first;     ///< row of its first token or key
  int64_t tokens;    ///< 1 .. 16, or 0 .. block
  int64_t number;    ///< of the tile or block, within the segment
  int64_t position;  ///< of its first token
};

/// How many tiles and blocks there are. At most max_tiles, and see max_blocks.
inline int64_t tile_count(const SegmentGrid& grid) {
  return grid.tile_starts.as<int32_t>().back();
}
inline int64_t block_count(const SegmentGrid& grid) {
  return grid.block_starts.as<int32_t>().back();
}
/// Throws when there are more than max_blocks blocks. `who` begins the sentence.
void check_block_count(const SegmentGrid& grid, const char* who);

/// The last of the ranges that `starts` bounds which begins at `index` or before: an empty one
/// never is, for an index before the end.
inline int64_t range_of(std::span<const int32_t> starts, int64_t index) {
  return std::upper_bound(starts.begin(), starts.end(), index) - starts.begin() - 1;
}
/// Tile `tile` < tile_count.
inline GridRange find_tile(const SegmentGrid& grid, int64_t tile) {
  constexpr int64_t kTile = SegmentGrid::kTile;
  const auto tile_starts = grid.tile_starts.as<int32_t>();
  const int64_t piece = range_of(tile_starts, tile);
  const Stretches pieces = pieces_of(grid);
  const int64_t number =
      pieces.first(piece) / kTile + tile - tile_starts[static_cast<size_t>(piece)];
  const int64_t position = std::max(pieces.first(piece), number * kTile);
  const int64_t end = std::min(pieces.end(piece), (number + 1) * kTile);
  return {pieces.segment(piece), pieces.origin(piece) + position, end - position, number, position};
}
/// Block `block` < block_count: as many of its keys as follow its first key in one run. No tokens
/// when that key is not here.
GridRange find_block(const SegmentGrid& grid, int64_t block);

}  // namespace cpu
namespace gpu {
void build_segment_grid(Stream& stream, const BuildSegmentGrid& a);
void build_sharded_grid(Stream& stream, const BuildShardedGrid& a);
}  // namespace gpu

}  // namespace tessera
