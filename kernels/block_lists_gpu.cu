#include <algorithm>

#include "kernels/block_selection.h"
#include "kernels/core/block_scan.cuh"
#include "kernels/core/device_check.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/core/workspace.h"
#include "kernels/segment_grid.cuh"

// Lists by tile in two passes over the choices, each with a block of lanes per tile: the masks of
// all blocks before the tile are put together in shared memory, by OR, which has no order; the
// first pass counts them, the second writes them where the counts before it end.
// The transpose goes by strips of 32 tiles: a word per strip and block says which of them list the
// block, so that the place of an entry is the number of bits before its own, in the order of tiles.
// Bytes: the choices twice, the entries three times, the words three times; all far below the
// scores' work.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kScanThreads = 1024;
constexpr int kTile = SegmentGrid::kTile;
constexpr int kStrip = 32;  // tiles
static_assert(kStrip == kWarpSize);
/// Blocks that are looked at together in shared memory.
constexpr int kWindow = 4096;
/// Of the workspace, for the words of strips.
constexpr int64_t kStripBytes = Stream::kWorkspaceBytes / 2;

struct Lists {
  int32_t* tile_offsets;   // [groups, max_tiles + 1]
  int32_t* tile_blocks;    // [groups, capacity]
  uint16_t* tile_masks;    // [groups, capacity]
  int32_t* block_offsets;  // [groups, max_blocks + 1]
  int32_t* block_tiles;    // [groups, capacity]
  uint16_t* block_masks;   // [groups, capacity]
  int64_t capacity;
  int max_tiles;
};

struct Choices {
  const int32_t* blocks;  // [groups, tokens, slots]
  const int32_t* counts;  // [groups, tokens]
  GridView grid;
  int slots;
};

/// masks[i] holds the masks of the blocks first + 2 i, in its lower half, and first + 2 i + 1: of
/// `count` blocks. The whole block of lanes does it.
__device__ void mark_choices(const Choices& a, const GridRange& tile, int64_t first_token,
                             int first, int count, uint32_t* masks) {
  for (int i = static_cast<int>(threadIdx.x); 2 * i < count; i += kThreads) masks[i] = 0;
  __syncthreads();
  const int first_bit = tile.position % kTile;
  for (int i = static_cast<int>(threadIdx.x); i < tile.tokens * a.slots; i += kThreads) {
    const int t = i / a.slots;
    if (i - t * a.slots >= a.counts[first_token + t]) continue;
    const int at = a.blocks[first_token * a.slots + i] - first;
    if (at < 0 || at >= count) continue;
    atomicOr(masks + at / 2, 1u << (first_bit + t + 16 * (at % 2)));
  }
  __syncthreads();
}

__device__ uint16_t mask_at(const uint32_t* masks, int i) {
  return static_cast<uint16_t>(masks[i / 2] >> (16 * (i % 2)));
}

__device__ void check_choices(const Choices& a, const GridRange& tile, int64_t first_token,
                              int before) {
  for (int i = static_cast<int>(threadIdx.x); i < tile.tokens * a.slots; i += kThreads) {
    const int t = i / a.slots;
    const int count = a.counts[first_token + t];
    device_check(count >= 0 && count < a.slots, "build_block_lists: a token has too many choices");
    if (i - t * a.slots >= count) continue;
    const int block = a.blocks[first_token * a.slots + i];
    device_check(block >= 0 && block < before,
                 "build_block_lists: a token chose a block that is not before its own");
  }
}

/// tile_offsets[tile + 1] is the number of entries: a block of lanes per tile and group.
__global__ void __launch_bounds__(kThreads) count_entries(Choices a, Lists lists) {
  SharedMemory shared;
  int* const scratch = shared.take<int>(kWarpSize);
  uint32_t* const masks = shared.take<uint32_t>(kWindow / 2);
  const int tile = static_cast<int>(blockIdx.x);
  int32_t* const offsets = lists.tile_offsets + int64_t{blockIdx.y} * (lists.max_tiles + 1);
  if (tile >= a.grid.tile_count()) {
    if (threadIdx.x == 0) offsets[tile + 1] = 0;
    return;
  }
  const GridRange range = find_tile(a.grid, tile);
  const int64_t first_token = int64_t{blockIdx.y} * a.grid.tokens + range.first;
  const int before = range.position / a.grid.block;
  check_choices(a, range, first_token, before);
  int entries = 0;
  for (int first = 0; first < before; first += kWindow) {
    const int count = std::min(int{kWindow}, before - first);
    mark_choices(a, range, first_token, first, count, masks);
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
      entries += mask_at(masks, i) != 0;
    }
    __syncthreads();  // masks is used again
  }
  int all;
  block_prefix_sum(entries, scratch, all);
  if (threadIdx.x == 0) offsets[tile + 1] = all;
}

/// Writes the list of a tile where tile_offsets says.
__global__ void __launch_bounds__(kThreads) write_entries(Choices a, Lists lists) {
  SharedMemory shared;
  int* const scratch = shared.take<int>(kWarpSize);
  uint32_t* const masks = shared.take<uint32_t>(kWindow / 2);
  const int tile = static_cast<int>(blockIdx.x);
  if (tile >= a.grid.tile_count()) return;
  const GridRange range = find_tile(a.grid, tile);
  const int64_t first_token = int64_t{blockIdx.y} * a.grid.tokens + range.first;
  const int before = range.position / a.grid.block;
  int64_t entry = int64_t{blockIdx.y} * lists.capacity +
                  lists.tile_offsets[int64_t{blockIdx.y} * (lists.max_tiles + 1) + tile];
  for (int first = 0; first < before; first += kWindow) {
    const int count = std::min(int{kWindow}, before - first);
    mark_choices(a, range, first_token, first, count, masks);
    for (int base = 0; base < count; base += kThreads) {
      const int i = base + static_cast<int>(threadIdx.x);
      const uint16_t mask = i < count ? mask_at(masks, i) : uint16_t{0};
      int all;
      const int until = block_prefix_sum(mask != 0, scratch, all);
      if (mask != 0) {
        lists.tile_blocks[entry + until - 1] = first + i;
        lists.tile_masks[entry + until - 1] = mask;
      }
      entry += all;
      __syncthreads();  // scratch and masks are used again
    }
  }
}

/// Sizes in offsets[begin + 1 .. begin + size] become ends of lists, which begin at
/// offsets[begin], or 0 at the first list. A block of lanes per group.
__global__ void __launch_bounds__(kScanThreads)
    sum_sizes(int32_t* offsets, int stride, int begin, int size, int64_t capacity) {
  SharedMemory shared;
  int* const scratch = shared.take<int>(kWarpSize);
  offsets += int64_t{blockIdx.x} * stride + begin;
  int sum = begin == 0 ? 0 : offsets[0];
  for (int base = 0; base < size; base += kScanThreads) {
    const int i = base + static_cast<int>(threadIdx.x);
    int all;
    const int until = block_prefix_sum(i < size ? offsets[i + 1] : 0, scratch, all);
    if (i < size) offsets[i + 1] = sum + until;
    sum += all;
    __syncthreads();  // scratch is used again
  }
  if (threadIdx.x > 0) return;
  if (begin == 0) offsets[0] = 0;
  device_check(sum <= capacity, "build_block_lists: the choices need more entries than there are");
}

/// Words and counts of strips for the blocks [first, first + blocks).
struct Strips {
  uint32_t* words;   // [groups, strips, blocks]: bit t: tile 32 strip + t lists the block
  int32_t* befores;  // [groups, strips, blocks]: tiles of the strips before it that list the block
  int strips;
  int first;
  int blocks;
};

/// Calls visit(tile of the strip, entry, place of its block in the strip's row): a warp per tile,
/// for the blocks in [first, end) of the row.
template <class Visit>
__device__ void for_each_entry(const Lists& lists, const GridView& grid, const Strips& x, int first,
                               int end, Visit visit) {
  const int64_t group = blockIdx.z;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int32_t* const offsets = lists.tile_offsets + group * (lists.max_tiles + 1);
  for (int t = warp; t < kStrip; t += kThreads / kWarpSize) {
    const int tile = static_cast<int>(blockIdx.x) * kStrip + t;
    if (tile >= grid.tile_count()) return;
    const int begin = offsets[tile];
    const int size = offsets[tile + 1] - begin;
    if (size == 0) continue;
    const int base = grid.block_starts[find_tile(grid, tile).segment] - x.first;
    for (int e = lane; e < size; e += kWarpSize) {
      const int64_t entry = group * lists.capacity + begin + e;
      const int place = base + lists.tile_blocks[entry];
      if (place >= first && place < end) visit(t, entry, place);
    }
  }
}

/// Fills words: a block of lanes per strip, window of blocks, and group.
__global__ void __launch_bounds__(kThreads) mark_strips(Lists lists, GridView grid, Strips x) {
  SharedMemory shared;
  uint32_t* const words = shared.take<uint32_t>(kWindow);
  const int first = static_cast<int>(blockIdx.y) * kWindow;
  const int count = std::min(int{kWindow}, x.blocks - first);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) words[i] = 0;
  __syncthreads();
  for_each_entry(lists, grid, x, first, first + count,
                 [&](int t, int64_t, int place) { atomicOr(words + place - first, 1u << t); });
  __syncthreads();
  uint32_t* const to = x.words + (int64_t{blockIdx.z} * x.strips + blockIdx.x) * x.blocks + first;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) to[i] = words[i];
}

/// Fills befores, and block_offsets[block + 1] with the size of each list. A lane per block in
/// each of 32 warps, of which each has a range of strips.
__global__ void __launch_bounds__(kScanThreads) count_strips(Lists lists, GridView grid, Strips x) {
  constexpr int kWarps = kScanThreads / kWarpSize;
  SharedMemory shared;
  int* const sums = shared.take<int>(kWarps * kWarpSize);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int block = static_cast<int>(blockIdx.x) * kWarpSize + lane;
  const bool valid = block < x.blocks;
  const int begin = warp * x.strips / kWarps;
  const int end = (warp + 1) * x.strips / kWarps;
  const int64_t first = int64_t{blockIdx.y} * x.strips * x.blocks + block;
  int sum = 0;
  for (int strip = begin; valid && strip < end; ++strip) {
    sum += __popc(x.words[first + int64_t{strip} * x.blocks]);
  }
  sums[warp * kWarpSize + lane] = sum;
  __syncthreads();
  if (!valid) return;
  int before = 0;
  for (int w = 0; w < warp; ++w) before += sums[w * kWarpSize + lane];
  for (int strip = begin; strip < end; ++strip) {
    const int64_t at = first + int64_t{strip} * x.blocks;
    x.befores[at] = before;
    before += __popc(x.words[at]);
  }
  if (warp == kWarps - 1) {
    lists.block_offsets[int64_t{blockIdx.y} * (grid.max_blocks + 1) + x.first + block + 1] = before;
  }
}

/// Writes the lists by block: a block of lanes per strip and group.
__global__ void __launch_bounds__(kThreads) write_transpose(Lists lists, GridView grid, Strips x) {
  const int64_t group = blockIdx.z;
  const int64_t row = (group * x.strips + blockIdx.x) * x.blocks;
  const int32_t* const offsets = lists.block_offsets + group * (grid.max_blocks + 1) + x.first;
  for_each_entry(lists, grid, x, 0, x.blocks, [&](int t, int64_t entry, int place) {
    const int same_strip = __popc(x.words[row + place] & ((1u << t) - 1));
    const int64_t to =
        group * lists.capacity + offsets[place] + x.befores[row + place] + same_strip;
    lists.block_tiles[to] = static_cast<int>(blockIdx.x) * kStrip + t;
    lists.block_masks[to] = lists.tile_masks[entry];
  });
}

__global__ void check_blocks(GridView grid) {
  device_check(grid.block_count() <= grid.max_blocks,
               "build_block_lists: the grid has more than max_blocks blocks");
}

/// In passes over as many blocks as the workspace has words for.
void transpose(Stream& stream, const Lists& lists, const GridView& grid, int64_t groups) {
  const auto strips = blocks_for(lists.max_tiles, kStrip);
  const int64_t row_bytes = groups * strips * static_cast<int64_t>(sizeof(uint32_t) * 2);
  const int64_t most = std::max<int64_t>(kWarpSize, kStripBytes / std::max<int64_t>(1, row_bytes));
  Workspace workspace(stream, "build_block_lists");
  Strips x{};
  x.strips = static_cast<int>(strips);
  x.blocks = static_cast<int>(std::min<int64_t>(most, grid.max_blocks));
  x.words = workspace.take<uint32_t>(groups * strips * x.blocks);
  x.befores = workspace.take<int32_t>(groups * strips * x.blocks);
  const auto z = static_cast<unsigned>(groups);
  do {
    x.blocks = std::min(x.blocks, grid.max_blocks - x.first);
    launch(stream, mark_strips, dim3(strips, blocks_for(x.blocks, kWindow), z), kThreads,
           shared_bytes_of<uint32_t>(kWindow), lists, grid, x);
    launch(stream, count_strips, dim3(blocks_for(x.blocks, kWarpSize), z), kScanThreads,
           shared_bytes_of<int>(kScanThreads), lists, grid, x);
    launch(stream, sum_sizes, dim3(z), kScanThreads, shared_bytes_of<int>(kWarpSize),
           lists.block_offsets, grid.max_blocks + 1, x.first, x.blocks, lists.capacity);
    launch(stream, write_transpose, dim3(strips, 1, z), kThreads, 0, lists, grid, x);
    x.first += x.blocks;
  } while (x.first < grid.max_blocks);
}

}  // namespace

void build_block_lists(Stream& stream, const BuildBlockLists& a) {
  const GridView grid = view_of(a.grid);
  const int64_t groups = a.selection.blocks.shape()[0];
  const Lists lists{.tile_offsets = a.lists.tile_offsets.as<int32_t>().data(),
                    .tile_blocks = a.lists.tile_blocks.as<int32_t>().data(),
                    .tile_masks = a.lists.tile_masks.as<uint16_t>().data(),
                    .block_offsets = a.lists.block_offsets.as<int32_t>().data(),
                    .block_tiles = a.lists.block_tiles.as<int32_t>().data(),
                    .block_masks = a.lists.block_masks.as<uint16_t>().data(),
                    .capacity = a.lists.tile_blocks.shape()[1],
                    .max_tiles = static_cast<int>(a.grid.max_tiles())};
  const Choices choices{.blocks = a.selection.blocks.as<int32_t>().data(),
                        .counts = a.selection.counts.as<int32_t>().data(),
                        .grid = grid,
                        .slots = static_cast<int>(a.selection.kept() + 1)};
  const dim3 tiles(static_cast<unsigned>(lists.max_tiles), static_cast<unsigned>(groups));
  const int64_t shared = shared_bytes_of<int>(kWarpSize) + shared_bytes_of<uint32_t>(kWindow / 2);
  launch(stream, check_blocks, dim3(1), 1, 0, grid);
  launch(stream, count_entries, tiles, kThreads, shared, choices, lists);
  launch(stream, sum_sizes, dim3(tiles.y), kScanThreads, shared_bytes_of<int>(kWarpSize),
         lists.tile_offsets, lists.max_tiles + 1, 0, lists.max_tiles, lists.capacity);
  launch(stream, write_entries, tiles, kThreads, shared, choices, lists);
  transpose(stream, lists, grid, groups);
}

}  // namespace tessera::gpu
