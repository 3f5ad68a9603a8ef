#pragma once

#include "kernels/core/block_scan.cuh"

/// Which part of a grouped product a block computes. The host knows how many tiles there may be,
/// not how many rows each group has: blocks find their tile from the offsets on the device.
namespace tessera::gpu {

/// Rows of group g: [edge(g), edge(g + 1)), inside of the rows there are whatever the offsets are.
struct RowGroups {
  const int* offsets;  // [count + 1]
  int count;
  int rows;

  __device__ int edge(int i) const { return std::max(0, std::min(offsets[i], rows)); }
};

/// Tiles of `size` rows that groups have together, at most; tiles do not span groups.
inline int64_t most_row_tiles(int64_t rows, int64_t groups, int64_t size) {
  return rows / size + std::min(groups, rows);
}

struct RowTile {
  int group;
  int first;
  int rows;  // 0: there is no such tile
};
/// The tile `index` when all groups' rows are cut into tiles of `size`. For whole warps; all lanes
/// get the same.
__device__ inline RowTile find_row_tile(const RowGroups& groups, int index, int size) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (int base = 0; base < groups.count; base += kWarpSize) {
    const int group = std::min(base + lane, groups.count);
    const int begin = groups.edge(group);
    const int rows = std::max(0, groups.edge(std::min(group + 1, groups.count)) - begin);
    const int tiles = (rows + size - 1) / size;
    const int end = warp_prefix_sum(tiles);
    const unsigned after = __ballot_sync(kWholeWarp, end > index);
    if (after != 0) {
      const int found = __ffs(static_cast<int>(after)) - 1;
      const int skipped = size * (index - __shfl_sync(kWholeWarp, end - tiles, found));
      return {base + found, __shfl_sync(kWholeWarp, begin, found) + skipped,
              std::min(size, __shfl_sync(kWholeWarp, rows, found) - skipped)};
    }
    index -= __shfl_sync(kWholeWarp, end, kWarpSize - 1);
  }
  return {0, 0, 0};
}

/// Tiles in bands of a few rows of tiles, so that the blocks that run at one time share what they
/// read: the rows of a band and some columns.
struct TileOrder {
  static constexpr int kBand = 8;

  int column_tiles;

  /// Blocks of the grid.
  static unsigned blocks(int64_t row_tiles, int64_t column_tiles) {
    return static_cast<unsigned>((row_tiles + kBand - 1) / kBand * kBand * column_tiles);
  }
  __device__ int row(int block) const {
    return block / (kBand * column_tiles) * kBand + block % kBand;
  }
  __device__ int column(int block) const { return block % (kBand * column_tiles) / kBand; }
};

/// A tile of c = op(a) op(b): pointers are to its corner, strides in elements. `inner`: depth is
/// the inner axis of an operand, op(a) is [m, depth] and op(b) [depth, n].
template <class T>
struct TileProduct {
  void* c;
  const T* a;
  const T* b;
  int64_t c_stride;
  int64_t a_stride;
  int64_t b_stride;
  int m;
  int n;
  int depth;
  bool c_is_bf16;
  bool add;  // to c
};

}  // namespace tessera::gpu
