#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/attention_tile.cuh"
#include "kernels/query_tile.cuh"

/// What query-major attention kernels, forward and backward, go over: panels of keys, named by a
/// walk (window_walk.cuh, block_walk.cuh), and how the rows of a warp see them.
///
/// A walk, one per warp, has
///   Walk(arguments, grid, tile, rows);
///   bool next(Panel&): the next panel that the tile sees, in ascending order of position; the same
///   answer in all warps;
///   view(): how this warp sees the panel that `next` told last.
namespace tessera::gpu {

/// Consecutive keys that a tile of queries is to see next.
struct Panel {
  int first;  ///< position of its first key
  int count;
  int row;  ///< of k and v, of its first key
};
/// How one warp sees a panel: which strips, and what its lane's two rows see and add to scores.
struct PanelView {
  Strips strips;
  SeenKeys seen[2];  ///< unless strips.whole
  float bias[2];     ///< log2 of the gate
};

/// The two rows of a lane.
struct LaneRows {
  int position[2];
  int token[2];  ///< row of q
  int head[2];   ///< of q
  bool real[2];  ///< others repeat the last one and are not written
  int lowest;    ///< position of the rows of the warp, or of the unit that it is in
  int highest;

  /// Warps with `unit` rows together see panels alike.
  __device__ LaneRows(const QueryTile& tile, int warp, int unit = 16) {
    const int last = tile.rows() - 1;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 16 * warp + row_of_lane(half);
      real[half] = row <= last;
      const int clamped = std::min(row, last);
      position[half] = tile.first + clamped / tile.heads;
      token[half] = tile.origin + position[half];
      head[half] = tile.first_head + clamped % tile.heads;
    }
    const int first = 16 * warp / unit * unit;
    lowest = tile.first + std::min(first, last) / tile.heads;
    highest = tile.first + std::min(first + unit - 1, last) / tile.heads;
  }
};

}  // namespace tessera::gpu
