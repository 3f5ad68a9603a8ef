#include "kernels/segment_grid.h"

#include <gtest/gtest.h>

#include "tests/support/compare.h"

namespace tessera {
namespace {

using support::from_ints;
using support::Tensor;

/// A grid with its memory.
struct Built {
  Tensor starts;
  Tensor positions;
  Tensor tile_starts;
  Tensor block_starts;
  SegmentGrid grid;
};

Built build(const std::vector<int32_t>& starts, int64_t tokens, int64_t block) {
  Stream stream{Device{}};
  const auto bounds = static_cast<int64_t>(starts.size());
  Built built{from_ints(starts),
              Tensor(DType::kI32, {tokens}),
              Tensor(DType::kI32, {bounds}),
              Tensor(DType::kI32, {bounds}),
              {}};
  built.grid = build_segment_grid(stream, {.positions = built.positions,
                                           .tile_starts = built.tile_starts,
                                           .block_starts = built.block_starts,
                                           .starts = built.starts,
                                           .block = block});
  return built;
}

std::vector<double> values(const ConstTensorView& x) {
  return support::to_doubles(x);
}

TEST(SegmentGrid, NumbersTilesAndBlocksOverSegments) {
  // Segments of 33, 0, 64 and 3 tokens.
  const Built built = build({0, 33, 33, 97, 100}, 100, 32);
  const SegmentGrid& grid = built.grid;
  EXPECT_EQ(values(grid.tile_starts), (std::vector<double>{0, 3, 3, 7, 8}));
  EXPECT_EQ(values(grid.block_starts), (std::vector<double>{0, 2, 2, 4, 5}));
  const auto positions = grid.positions.as<int32_t>();
  EXPECT_EQ(positions[0], 0);
  EXPECT_EQ(positions[32], 32);
  EXPECT_EQ(positions[33], 0);
  EXPECT_EQ(positions[96], 63);
  EXPECT_EQ(positions[97], 0);
  EXPECT_EQ(positions[99], 2);
  EXPECT_EQ(grid.segments(), 4);
  EXPECT_EQ(grid.tokens(), 100);
  EXPECT_GE(grid.max_tiles(), 8);
  EXPECT_GE(grid.max_blocks(), 5);
}

TEST(SegmentGrid, BoundsHoldForAnyCut) {
  const Tensor cuts = support::random_ints({200, 5}, 1, 0, 301);
  for (size_t row = 0; row < 200; ++row) {
    std::vector<int32_t> starts(cuts.as<int32_t>().begin() + static_cast<int64_t>(row * 5),
                                cuts.as<int32_t>().begin() + static_cast<int64_t>(row * 5 + 5));
    starts.push_back(0);
    starts.push_back(300);
    std::sort(starts.begin(), starts.end());
    const Built built = build(starts, 300, 64);
    ASSERT_LE(cpu::tile_count(built.grid), built.grid.max_tiles());
    ASSERT_LE(cpu::block_count(built.grid), built.grid.max_blocks());
  }
}

TEST(SegmentGrid, FindsEveryTokenOnceByTileAndByBlock) {
  const Built built = build({0, 33, 33, 97, 100}, 100, 32);
  const SegmentGrid& grid = built.grid;
  const auto starts = grid.starts.as<int32_t>();
  const auto check = [&](int64_t count, auto find) {
    int64_t next = 0;
    for (int64_t i = 0; i < count; ++i) {
      const cpu::GridRange range = find(i);
      ASSERT_EQ(range.first, next) << i;
      ASSERT_GE(range.tokens, 1);
      const auto segment = static_cast<size_t>(range.segment);
      ASSERT_GE(range.first, starts[segment]);
      ASSERT_LE(range.first + range.tokens, starts[segment + 1]);
      next += range.tokens;
    }
    EXPECT_EQ(next, 100);
  };
  check(cpu::tile_count(grid), [&](int64_t i) { return cpu::find_tile(grid, i); });
  check(cpu::block_count(grid), [&](int64_t i) { return cpu::find_block(grid, i); });
  EXPECT_EQ(cpu::find_block(grid, 3).number, 1);
  EXPECT_EQ(cpu::find_block(grid, 4).segment, 3);
  EXPECT_EQ(cpu::find_tile(grid, 2).tokens, 1);
}

TEST(SegmentGrid, SaysWhatIsWrong) {
  support::expect_error(
      [] {
        build({1, 10}, 10, 16);
      },
      "build_segment_grid: starts[0] is 1, expected 0");
  support::expect_error(
      [] {
        build({0, 7, 5, 10}, 10, 16);
      },
      "build_segment_grid: starts[2] is 5, expected at least starts[1] = 7");
  support::expect_error(
      [] {
        build({0, 9}, 10, 16);
      },
      "build_segment_grid: the last of starts is 9, expected tokens = 10");
  support::expect_error(
      [] {
        build({0, 10}, 10, 24);
      },
      "build_segment_grid: block is 24 tokens, expected a multiple of 16");
  support::expect_error([] { build({0}, 0, 16); },
                        "build_segment_grid: starts is [1], expected [segments + 1]");
}

}  // namespace
}  // namespace tessera
