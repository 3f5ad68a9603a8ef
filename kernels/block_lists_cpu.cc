// Two passes over the choices, each over whole tiles: the first counts the union of a tile's
// choices, the second writes it where the counts before it end. The transpose is a counting sort
// by block in the order of tiles.

#include <algorithm>
#include <vector>

#include "kernels/block_selection.h"

namespace tessera::cpu {

namespace {

/// Bit t of masks[b]: the token of the tile with position % 16 = t chose block b. `masks` has one
/// element per block before the tile's own.
void mark_choices(const BuildBlockLists& a, int64_t group, const GridRange& tile,
                  std::vector<uint16_t>& masks) {
  const int64_t slots = a.selection.kept() + 1;
  const int64_t before = tile.position / a.grid.block;
  const int64_t first_bit = tile.position % SegmentGrid::kTile;
  const auto blocks = a.selection.blocks.as<int32_t>();
  const auto counts = a.selection.counts.as<int32_t>();
  masks.assign(static_cast<size_t>(before), 0);
  for (int64_t t = 0; t < tile.tokens; ++t) {
    const int64_t row = group * a.grid.tokens() + tile.first + t;
    const int64_t count = counts[static_cast<size_t>(row)];
    CHECK(count >= 0 && count < slots, "build_block_lists: token ", tile.first + t, " has ", count,
          " choices, expected at most ", slots - 1);
    for (int64_t s = 0; s < count; ++s) {
      const int64_t block = blocks[static_cast<size_t>(row * slots + s)];
      CHECK(block >= 0 && block < before, "build_block_lists: token ", tile.first + t,
            " chose block ", block, ", expected one before its own, ", before);
      masks[static_cast<size_t>(block)] |= static_cast<uint16_t>(1u << (first_bit + t));
    }
  }
}

std::vector<uint16_t>& masks_of_this_thread() {
  thread_local std::vector<uint16_t> masks;
  return masks;
}

/// offsets[i + 1] holds the size of list i; makes offsets[i] its beginning. The lists [0, used)
/// exist, the others are empty.
void sum_sizes(std::span<int32_t> offsets, int64_t used) {
  offsets[0] = 0;
  for (size_t i = 1; i < offsets.size(); ++i) {
    offsets[i] = static_cast<int64_t>(i) <= used ? offsets[i - 1] + offsets[i] : offsets[i - 1];
  }
}

std::span<int32_t> row_of(const TensorView& matrix, int64_t row) {
  const auto columns = static_cast<size_t>(matrix.shape()[1]);
  return matrix.as<int32_t>().subspan(static_cast<size_t>(row) * columns, columns);
}

void write_tile(const BuildBlockLists& a, int64_t group, int64_t tile) {
  const int64_t capacity = a.lists.tile_blocks.shape()[1];
  std::vector<uint16_t>& masks = masks_of_this_thread();
  mark_choices(a, group, find_tile(a.grid, tile), masks);
  int64_t entry = group * capacity + row_of(a.lists.tile_offsets, group)[static_cast<size_t>(tile)];
  for (size_t b = 0; b < masks.size(); ++b) {
    if (masks[b] == 0) continue;
    a.lists.tile_blocks.as<int32_t>()[static_cast<size_t>(entry)] = static_cast<int32_t>(b);
    a.lists.tile_masks.as<uint16_t>()[static_cast<size_t>(entry)] = masks[b];
    ++entry;
  }
}

/// The lists by block of one group, from those by tile.
void transpose(const BuildBlockLists& a, int64_t group) {
  const auto tile_offsets = row_of(a.lists.tile_offsets, group);
  const auto tile_blocks = row_of(a.lists.tile_blocks, group);
  const auto block_tiles = row_of(a.lists.block_tiles, group);
  const auto offsets = row_of(a.lists.block_offsets, group);
  const size_t first_mask = static_cast<size_t>(group * a.lists.tile_masks.shape()[1]);
  const auto tile_masks = a.lists.tile_masks.as<uint16_t>().subspan(first_mask);
  const auto block_masks = a.lists.block_masks.as<uint16_t>().subspan(first_mask);
  const auto block_starts = a.grid.block_starts.as<int32_t>();
  // visit(tile, entry, block over all segments), in the order of tiles.
  const auto for_each_entry = [&](const auto& visit) {
    for (int64_t tile = 0; tile < tile_count(a.grid); ++tile) {
      const auto t = static_cast<size_t>(tile);
      if (tile_offsets[t] == tile_offsets[t + 1]) continue;
      const auto base = block_starts[static_cast<size_t>(find_tile(a.grid, tile).segment)];
      for (auto e = static_cast<size_t>(tile_offsets[t]);
           e < static_cast<size_t>(tile_offsets[t + 1]); ++e) {
        visit(tile, e, static_cast<size_t>(base + tile_blocks[e]));
      }
    }
  };
  std::fill(offsets.begin(), offsets.end(), 0);
  for_each_entry([&](int64_t, size_t, size_t block) { ++offsets[block + 1]; });
  sum_sizes(offsets, static_cast<int64_t>(offsets.size()));
  for_each_entry([&](int64_t tile, size_t e, size_t block) {
    const auto to = static_cast<size_t>(offsets[block]++);
    block_tiles[to] = static_cast<int32_t>(tile);
    block_masks[to] = tile_masks[e];
  });
  // Writing moved every beginning to its end, which is the beginning of the next.
  std::copy_backward(offsets.begin(), offsets.end() - 1, offsets.end());
  offsets[0] = 0;
}

}  // namespace

void build_block_lists(ThreadPool& threads, const BuildBlockLists& a) {
  constexpr int64_t kTilesPerTask = 32;
  check_block_count(a.grid, "build_block_lists");
  const int64_t groups = a.selection.blocks.shape()[0];
  const int64_t tiles = tile_count(a.grid);
  threads.for_ranges(groups * tiles, kTilesPerTask, [&](int64_t begin, int64_t end) {
    std::vector<uint16_t>& masks = masks_of_this_thread();
    for (int64_t i = begin; i < end; ++i) {
      mark_choices(a, i / tiles, find_tile(a.grid, i % tiles), masks);
      const auto chosen = std::count_if(masks.begin(), masks.end(), [](uint16_t m) { return m; });
      row_of(a.lists.tile_offsets, i / tiles)[static_cast<size_t>(i % tiles) + 1] =
          static_cast<int32_t>(chosen);
    }
  });
  const int64_t capacity = a.lists.tile_blocks.shape()[1];
  for (int64_t group = 0; group < groups; ++group) {
    const auto offsets = row_of(a.lists.tile_offsets, group);
    sum_sizes(offsets, tiles);
    CHECK(offsets.back() <= capacity, "build_block_lists: the choices need ", offsets.back(),
          " entries, expected at most the capacity, ", capacity);
  }
  threads.for_ranges(groups * tiles, kTilesPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) write_tile(a, i / tiles, i % tiles);
  });
  threads.for_each(groups, [&](int64_t group) { transpose(a, group); });
}

}  // namespace tessera::cpu
