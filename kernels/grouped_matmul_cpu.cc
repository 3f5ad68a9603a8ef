#include <algorithm>
#include <span>

#include "kernels/block_matmul.h"
#include "kernels/grouped_matmul.h"

namespace tessera::cpu {

namespace {

// Largest tiles of an output: an expert has tens to hundreds of rows, and there are many experts,
// so tiles may be large and there are still enough of them.
constexpr int64_t kTileRows = 256;
constexpr int64_t kTileColumns = 768;
// Rows of a tile, so that the compiled products of odd sizes are few; columns of a tile.
constexpr int64_t kRowMultiple = 16;
constexpr int64_t kColumnMultiple = 64;

/// Offsets come from a kernel, not from a person; a wrong one would read and write anywhere.
void check_offsets(const char* who, std::span<const int32_t> offsets, int64_t rows) {
  CHECK(offsets[0] == 0, who, ": offsets start at ", offsets[0], ", expected 0");
  for (size_t e = 1; e < offsets.size(); ++e) {
    CHECK(offsets[e - 1] <= offsets[e], who, ": offsets[", e, "] is ", offsets[e], " after ",
          offsets[e - 1], ", expected ascending ones");
  }
  CHECK(offsets.back() <= rows, who, ": offsets end at ", offsets.back(), ", expected at most ",
        rows, " rows");
}

/// Tiles of each group's rows, over all groups.
class RowTiles {
 public:
  struct Tile {
    int64_t group;
    int64_t first;
    int64_t rows;
  };

  explicit RowTiles(std::span<const int32_t> offsets) : offsets_(offsets) {}

  int64_t count() const {
    int64_t total = 0;
    for (int64_t e = 0; e < groups(); ++e) total += parts_of(rows_of(e), kTileRows);
    return total;
  }

  Tile find(int64_t index) const {
    int64_t e = 0;
    for (; index >= parts_of(rows_of(e), kTileRows); ++e) index -= parts_of(rows_of(e), kTileRows);
    const int64_t size = even_part(rows_of(e), kTileRows, kRowMultiple);
    const int64_t first = index * size;
    return {e, offsets_[static_cast<size_t>(e)] + first, std::min(size, rows_of(e) - first)};
  }

 private:
  int64_t groups() const { return static_cast<int64_t>(offsets_.size()) - 1; }
  int64_t rows_of(int64_t e) const {
    return offsets_[static_cast<size_t>(e) + 1] - offsets_[static_cast<size_t>(e)];
  }

  std::span<const int32_t> offsets_;
};

const char* at(const ConstTensorView& x, int64_t element) {
  return static_cast<const char*>(x.data()) + element * size_of(x.dtype());
}

char* at(const TensorView& x, int64_t element) {
  return static_cast<char*>(x.data()) + element * size_of(x.dtype());
}

}  // namespace

void grouped_matmul(ThreadPool& threads, const GroupedMatmul& a) {
  const int64_t k = a.a.shape()[1];
  const int64_t n = a.c.shape()[1];
  const auto offsets = a.offsets.as<int32_t>();
  check_offsets("grouped_matmul", offsets, a.a.shape()[0]);
  if (n == 0) return;
  const RowTiles row_tiles(offsets);
  const int64_t columns = even_part(n, kTileColumns, kColumnMultiple);
  const int64_t column_tiles = parts_of(n, columns);
  threads.for_each(row_tiles.count() * column_tiles, [&](int64_t i) {
    const RowTiles::Tile tile = row_tiles.find(i / column_tiles);
    const int64_t column = i % column_tiles * columns;
    const int64_t b_stride = a.transpose_b ? k : n;
    block_matmul({
        .c = at(a.c, tile.first * n + column),
        .a = at(a.a, tile.first * k),
        .b = at(a.b, tile.group * k * n + (a.transpose_b ? column * k : column)),
        .m = tile.rows,
        .n = std::min(columns, n - column),
        .k = k,
        .c_stride = n,
        .a_stride = k,
        .b_stride = b_stride,
        .c_dtype = a.c.dtype(),
        .dtype = a.a.dtype(),
        .transpose_b = a.transpose_b,
    });
  });
}

void grouped_matmul_weight(ThreadPool& threads, const GroupedMatmulWeight& a) {
  const int64_t n = a.a.shape()[1];
  const int64_t k = a.b.shape()[1];
  const auto offsets = a.offsets.as<int32_t>();
  check_offsets("grouped_matmul_weight", offsets, a.a.shape()[0]);
  if (n == 0 || k == 0) return;
  const int64_t rows = even_part(n, kTileRows, kColumnMultiple);
  const int64_t columns = even_part(k, kTileColumns, kColumnMultiple);
  const int64_t row_tiles = parts_of(n, rows);
  const int64_t column_tiles = parts_of(k, columns);
  const int64_t groups = a.c.shape()[0];
  threads.for_each(groups * row_tiles * column_tiles, [&](int64_t i) {
    const int64_t group = i / (row_tiles * column_tiles);
    const int64_t row = i / column_tiles % row_tiles * rows;
    const int64_t column = i % column_tiles * columns;
    const int64_t first = offsets[static_cast<size_t>(group)];
    block_matmul({
        .c = at(a.c, (group * n + row) * k + column),
        .a = at(a.a, first * n + row),
        .b = at(a.b, first * k + column),
        .m = std::min(rows, n - row),
        .n = std::min(columns, k - column),
        .k = offsets[static_cast<size_t>(group) + 1] - first,
        .c_stride = k,
        .a_stride = n,
        .b_stride = k,
        .c_dtype = DType::kF32,
        .dtype = a.a.dtype(),
        .transpose_a = true,
        .accumulate = true,
    });
  });
}

}  // namespace tessera::cpu
