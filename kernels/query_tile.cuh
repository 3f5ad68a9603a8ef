#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <span>

#include "kernels/head_map.h"
#include "kernels/segment_grid.cuh"

/// Which queries a block of threads of a query-major attention kernel has: some tokens of a piece
/// of a grid and some heads of a KV group. The grid of the launch comes from bounds in the shapes;
/// blocks beyond the real number find no tokens.
namespace tessera::gpu {

/// The KV groups of a call, for a kernel's arguments.
struct GroupList {
  static constexpr int kMost = 256;
  int16_t at[kMost];
};
inline GroupList group_list(std::span<const int32_t> groups, const char* who) {
  CHECK(groups.size() <= GroupList::kMost, who, ": ", groups.size(), " groups, expected at most ",
        GroupList::kMost);
  GroupList list{};
  for (size_t i = 0; i < groups.size(); ++i) list.at[i] = static_cast<int16_t>(groups[i]);
  return list;
}

/// How query-major kernels are cut: a block of threads has up to `tokens` tokens of a piece times
/// `heads` heads of a group, a multiple of 16 tokens, so that a tile of the grid is never cut.
struct QueryCut {
  int tokens;
  int heads;
  int parts;  ///< of a group, by heads

  /// Into at most `rows` rows, a multiple of 16.
  static constexpr QueryCut of(int64_t group_heads, int rows) {
    const int most = rows / 16;
    const int parts = static_cast<int>((group_heads + most - 1) / most);
    const int heads = static_cast<int>((group_heads + parts - 1) / parts);
    return {rows / heads / 16 * 16, heads, parts};
  }
};

/// The queries of one block of threads. Row r of it is head r % heads of token r / heads, so that
/// the 16 rows of a warp are few tokens, which see the same keys.
struct QueryTile {
  int piece;  ///< of the grid
  int segment;
  int origin;      ///< row of q of position 0, if it were there: may be negative
  int first;       ///< position
  int count;       ///< tokens; may be 0
  int place;       ///< of the group, in the list
  int kv_head;     ///< the group
  int first_head;  ///< of q
  int heads;       ///< 0 where q has none of this part

  __device__ int rows() const { return count * heads; }
  /// One behind the last position.
  __device__ int end() const { return first + count; }
};
/// Grid of the launch that find_query_tile belongs to. The last tiles of a piece see most keys and
/// come first; a group's tiles are neighbours, so that its keys stay in the L2 cache.
inline dim3 query_tiles(const GridView& grid, const QueryCut& cut, size_t groups) {
  return {static_cast<unsigned>(part_bound(grid.pieces, grid.tokens, cut.tokens)),
          static_cast<unsigned>(static_cast<int64_t>(groups) * cut.parts)};
}
/// Of the `number`-th tokens: a group and a part of its heads.
__device__ inline QueryTile query_tile(const GridView& grid, const QueryCut& cut,
                                       const GroupList& groups, const HeadMap& map, int number,
                                       int place, int part_of_heads) {
  const StretchPart part = find_part(grid.pieces, cut.tokens, number);
  const int skipped = part_of_heads * cut.heads;
  const int kv_head = groups.at[place];
  return {
      .piece = part.stretch,
      .segment = grid.pieces.segment(part.stretch),
      .origin = grid.pieces.origin(part.stretch),
      .first = part.first,
      .count = part.count,
      .place = place,
      .kv_head = kv_head,
      .first_head = static_cast<int>(map.begin_of(kv_head)) + skipped,
      .heads = std::max(0, std::min(cut.heads, static_cast<int>(map.count_of(kv_head)) - skipped))};
}

/// Of the tokens that this block of threads has by blockIdx.x: a group and a part of its heads.
__device__ inline QueryTile query_tile(const GridView& grid, const QueryCut& cut,
                                       const GroupList& groups, const HeadMap& map, int place,
                                       int part_of_heads) {
  const auto number = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  return query_tile(grid, cut, groups, map, number, place, part_of_heads);
}

__device__ inline QueryTile find_query_tile(const GridView& grid, const QueryCut& cut,
                                            const GroupList& groups, const HeadMap& map) {
  const auto group_part = static_cast<int>(blockIdx.y);
  return query_tile(grid, cut, groups, map, group_part / cut.parts, group_part % cut.parts);
}

/// Of a kernel whose blocks of threads take tile after tile: tile `index` of `tokens` x groups, as
/// query_tiles has them.
__device__ inline QueryTile find_query_tile(const GridView& grid, const QueryCut& cut,
                                            const GroupList& groups, const HeadMap& map, int tokens,
                                            int index) {
  const int group_part = index / tokens;
  return query_tile(grid, cut, groups, map, tokens - 1 - index % tokens, group_part / cut.parts,
                    group_part % cut.parts);
}

}  // namespace tessera::gpu
