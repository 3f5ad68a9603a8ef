#include <algorithm>

#include "kernels/block_matmul.h"
#include "kernels/matmul.h"

namespace tessera::cpu {

namespace {

struct Tile {
  int64_t rows;
  int64_t columns;
};

// Large tiles run at the processor's rate, small ones lose up to a fifth of it but are enough of
// them to keep threads busy: the first size that gives kTiles of them.
constexpr Tile kTileSizes[] = {{512, 768}, {256, 768}, {256, 512},
                               {256, 384}, {256, 256}, {256, 192}};
constexpr Tile kSmallestTile{256, 128};
constexpr int64_t kTiles = 12;
constexpr int64_t kMultiple = 64;

Tile tile_of(int64_t m, int64_t n) {
  for (const Tile& tile : kTileSizes) {
    if (parts_of(m, tile.rows) * parts_of(n, tile.columns) >= kTiles) {
      return {even_part(m, tile.rows, kMultiple), even_part(n, tile.columns, kMultiple)};
    }
  }
  return {even_part(m, kSmallestTile.rows, kMultiple),
          even_part(n, kSmallestTile.columns, kMultiple)};
}

}  // namespace

void matmul(ThreadPool& threads, const Matmul& a) {
  const int64_t m = a.c.shape()[0];
  const int64_t n = a.c.shape()[1];
  const int64_t k = a.a.shape()[a.transpose_a ? 0 : 1];
  const int64_t a_stride = a.a.shape()[1];
  const int64_t b_stride = a.b.shape()[1];
  const int64_t bytes = size_of(a.a.dtype());
  if (m == 0 || n == 0) return;
  const Tile tile = tile_of(m, n);
  const int64_t tile_rows = parts_of(m, tile.rows);
  // Tiles of one column follow each other, so that its part of b stays in cache.
  threads.for_each(tile_rows * parts_of(n, tile.columns), [&](int64_t i) {
    const int64_t row = i % tile_rows * tile.rows;
    const int64_t column = i / tile_rows * tile.columns;
    const int64_t a_offset = a.transpose_a ? row : row * a_stride;
    const int64_t b_offset = a.transpose_b ? column * b_stride : column;
    block_matmul({
        .c = static_cast<char*>(a.c.data()) + (row * n + column) * size_of(a.c.dtype()),
        .a = static_cast<const char*>(a.a.data()) + a_offset * bytes,
        .b = static_cast<const char*>(a.b.data()) + b_offset * bytes,
        .m = std::min(tile.rows, m - row),
        .n = std::min(tile.columns, n - column),
        .k = k,
        .c_stride = n,
        .a_stride = a_stride,
        .b_stride = b_stride,
        .c_dtype = a.c.dtype(),
        .dtype = a.a.dtype(),
        .transpose_a = a.transpose_a,
        .transpose_b = a.transpose_b,
        .accumulate = a.accumulate,
    });
  });
}

}  // namespace tessera::cpu
