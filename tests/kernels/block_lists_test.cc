#include <gtest/gtest.h>

#include <map>

#include "kernels/block_selection.h"
#include "tests/support/compare.h"
#include "tests/support/segments.h"
#include "tests/support/selection.h"

namespace tessera {
namespace {

using support::Segments;
using support::Selection;
using support::Tensor;

constexpr int64_t kGroups = 2;

/// BlockLists with their own memory, full of garbage.
struct Lists {
  Lists(const SegmentGrid& grid, int64_t capacity)
      : tile_offsets(support::filled(DType::kI32, {kGroups, grid.max_tiles() + 1}, -7)),
        tile_blocks(support::filled(DType::kI32, {kGroups, capacity}, -7)),
        tile_masks(support::filled(DType::kU16, {kGroups, capacity}, 7)),
        block_offsets(support::filled(DType::kI32, {kGroups, grid.max_blocks() + 1}, -7)),
        block_tiles(support::filled(DType::kI32, {kGroups, capacity}, -7)),
        block_masks(support::filled(DType::kU16, {kGroups, capacity}, 7)) {}

  BlockLists view() const {
    return {.tile_offsets = tile_offsets.view(),
            .tile_blocks = tile_blocks.view(),
            .tile_masks = tile_masks.view(),
            .block_offsets = block_offsets.view(),
            .block_tiles = block_tiles.view(),
            .block_masks = block_masks.view()};
  }

  Tensor tile_offsets;
  Tensor tile_blocks;
  Tensor tile_masks;
  Tensor block_offsets;
  Tensor block_tiles;
  Tensor block_masks;
};

/// Random choices of at most `kept` of the candidates, as score_select might make them.
Selection random_selection(const Segments& segments, const BlockRule& rule, uint64_t seed) {
  Selection selection(kGroups, segments.tokens(), rule.kept);
  for (int64_t c = 0; c < kGroups; ++c) {
    for (int64_t i = 0; i < segments.tokens(); ++i) {
      const auto row = selection.row_of_blocks(c, i);
      std::fill(row.begin(), row.end(), -1);
      size_t used = 0;
      const int64_t candidates = rule.candidates(segments.own_block(i));
      for (int64_t b = 0; b < candidates && used < static_cast<size_t>(rule.kept); ++b) {
        const auto words = philox(seed, static_cast<uint64_t>(c * segments.tokens() + i),
                                  static_cast<uint64_t>(b));
        if (words[0] % 3 != 0) continue;
        row[used++] = static_cast<int32_t>(rule.sink_blocks + b);
      }
      selection.count(c, i) = static_cast<int32_t>(used);
    }
  }
  return selection;
}

using Masks = std::map<std::pair<int64_t, int64_t>, uint16_t>;

/// (tile, block over all segments) -> mask, token by token.
Masks masks_of(const Segments& segments, const Selection& selection, int64_t group) {
  Masks masks;
  for (int64_t i = 0; i < segments.tokens(); ++i) {
    for (int64_t s = 0; s < selection.count(group, i); ++s) {
      const int64_t block = segments.first_block(segments.segment(i)) +
                            selection.row_of_blocks(group, i)[static_cast<size_t>(s)];
      masks[{segments.tile(i), block}] |=
          static_cast<uint16_t>(1u << (segments.position(i) % SegmentGrid::kTile));
    }
  }
  return masks;
}

void expect_lists(const Segments& segments, const Lists& lists, const Masks& masks, int64_t group,
                  int64_t capacity) {
  // std::map is ordered by tile, then block; the transpose by block, then tile.
  std::map<std::pair<int64_t, int64_t>, uint16_t> transposed;
  for (const auto& [place, mask] : masks) transposed[{place.second, place.first}] = mask;
  const auto expect = [&](const Tensor& offsets, const Tensor& members, const Tensor& member_masks,
                          const Masks& expected, bool tiles) {
    const int64_t lists_of_group = offsets.shape()[1] - 1;
    const auto begin = offsets.as<int32_t>().subspan(
        static_cast<size_t>(group * (lists_of_group + 1)), static_cast<size_t>(lists_of_group + 1));
    auto next = expected.begin();
    ASSERT_EQ(begin[0], 0);
    for (int64_t list = 0; list < lists_of_group; ++list) {
      const auto l = static_cast<size_t>(list);
      for (int64_t e = begin[l]; e < begin[l + 1]; ++e, ++next) {
        const auto at = static_cast<size_t>(group * capacity + e);
        ASSERT_NE(next, expected.end());
        // Blocks in the list of a tile are numbered within its segment.
        int64_t member = members.as<int32_t>()[at];
        for (int64_t i = 0; tiles && i < segments.tokens(); ++i) {
          if (segments.tile(i) != list) continue;
          member += segments.first_block(segments.segment(i));
          break;
        }
        EXPECT_EQ(next->first, std::make_pair(list, member));
        EXPECT_EQ(next->second, member_masks.as<uint16_t>()[at]);
      }
    }
    EXPECT_EQ(next, expected.end());
    EXPECT_EQ(begin[static_cast<size_t>(lists_of_group)], static_cast<int64_t>(expected.size()));
  };
  expect(lists.tile_offsets, lists.tile_blocks, lists.tile_masks, masks, true);
  expect(lists.block_offsets, lists.block_tiles, lists.block_masks, transposed, false);
}

TEST(BlockLists, AreTheChoicesInBothDirections) {
  Stream stream{support::device(), 2};
  for (const std::vector<int64_t>& lengths : std::vector<std::vector<int64_t>>{
           {200}, {0, 37, 0, 0, 171, 1, 16, 0}, {5, 160, 333}, {3}, {0}, {}}) {
    for (const BlockRule& rule : {BlockRule{1, 2, 2}, BlockRule{0, 1, 40}}) {
      const Segments segments(lengths, 16);
      const int64_t capacity = block_list_capacity(segments.tokens(), 16, rule);
      const Selection selection = random_selection(segments, rule, lengths.size());
      const Lists lists(segments.grid(), capacity);
      build_block_lists(
          stream, {.lists = lists.view(), .selection = selection.view(), .grid = segments.grid()});
      for (int64_t c = 0; c < kGroups; ++c) {
        expect_lists(segments, lists, masks_of(segments, selection, c), c, capacity);
      }
    }
  }
}

TEST(BlockLists, AnyNumberOfThreadsGivesTheSameBits) {
  const BlockRule rule{1, 1, 3};
  const Segments segments({100, 700}, 16);
  const Selection selection = random_selection(segments, rule, 4);
  support::expect_same_on_any_threads([&](Stream& stream) {
    Lists lists(segments.grid(), block_list_capacity(segments.tokens(), 16, rule));
    build_block_lists(
        stream, {.lists = lists.view(), .selection = selection.view(), .grid = segments.grid()});
    return support::tensors(std::move(lists.tile_offsets), std::move(lists.tile_blocks),
                            std::move(lists.tile_masks), std::move(lists.block_offsets),
                            std::move(lists.block_tiles), std::move(lists.block_masks));
  });
}

/// The most entries that a tile can have: every token chooses other blocks, as far as there are
/// any.
int64_t most_entries(const std::vector<int64_t>& lengths, int64_t block, const BlockRule& rule) {
  int64_t entries = 0;
  for (const int64_t length : lengths) {
    for (int64_t first = 0; first < length; first += SegmentGrid::kTile) {
      const int64_t tokens = std::min(SegmentGrid::kTile, length - first);
      entries += std::min(tokens * rule.kept, rule.candidates(first / block));
    }
  }
  return entries;
}

TEST(BlockLists, CapacityIsABoundForEveryCutAndReachedByOneSegment) {
  for (const int64_t block : {16, 48}) {
    for (const BlockRule& rule : {BlockRule{0, 1, 1}, BlockRule{1, 2, 2}, BlockRule{0, 1, 100}}) {
      for (int64_t tokens = 0; tokens <= 1200; tokens += 37) {
        const int64_t capacity = block_list_capacity(tokens, block, rule);
        const int64_t whole = (tokens + 15) / 16 * 16;
        EXPECT_EQ(capacity, most_entries({whole}, block, rule));
        for (uint64_t cut = 0; cut < 20; ++cut) {
          std::vector<int64_t> lengths;
          int64_t left = tokens;
          for (uint64_t i = 0; left > 0; ++i) {
            const int64_t most = cut < 10 ? 600 : 40;
            lengths.push_back(std::min<int64_t>(left, 1 + philox(cut, 0, i)[0] % most));
            left -= lengths.back();
          }
          EXPECT_LE(most_entries(lengths, block, rule), capacity) << tokens << " tokens";
        }
      }
    }
  }
}

TEST(BlockLists, SaysWhatIsWrong) {
  const BlockRule rule{0, 1, 2};
  const Segments segments({100}, 16);
  const Selection selection = random_selection(segments, rule, 4);
  const Lists lists(segments.grid(), 3);
  Stream stream{support::device()};
  const auto build = [&] {
    build_block_lists(
        stream, {.lists = lists.view(), .selection = selection.view(), .grid = segments.grid()});
  };
  support::expect_kernel_error(build, "entries, expected at most the capacity, 3",
                               "need more entries than there are");
  selection.row_of_blocks(1, 99)[0] = 6;
  selection.count(1, 99) = 1;
  support::expect_kernel_error(
      build, "build_block_lists: token 99 chose block 6, expected one before its own, 6",
      "a token chose a block that is not before its own");
  selection.count(1, 99) = 3;
  support::expect_kernel_error(build,
                               "build_block_lists: token 99 has 3 choices, expected at most 2",
                               "a token has too many choices");
  BlockLists wrong = lists.view();
  wrong.tile_masks = support::plan_view(DType::kU16, {2, 4});
  support::expect_error(
      [&] {
        build_block_lists(stream,
                          {.lists = wrong, .selection = selection.view(), .grid = segments.grid()});
      },
      "build_block_lists: tile_masks is u16 [2, 4], expected u16 [groups, capacity] = [2, 3]");
  support::expect_error([&] { block_list_capacity(100, 24, rule); },
                        "block_list_capacity: block is 24, expected a multiple of 16");
}

}  // namespace
}  // namespace tessera
