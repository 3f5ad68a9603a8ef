#include "kernels/segment_grid.h"

#include <gtest/gtest.h>

#include <functional>

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
  Stream stream{support::device()};
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

// More segments than a block of lanes scans at once, and tokens of more than one block.
TEST(SegmentGrid, NumbersManySegments) {
  const Tensor lengths = support::random_ints({2500}, 3, 0, 4);
  std::vector<int32_t> starts{0};
  for (const int32_t length : lengths.as<int32_t>()) starts.push_back(starts.back() + 17 * length);
  const Built built = build(starts, starts.back(), 32);
  int32_t tiles = 0;
  int32_t blocks = 0;
  for (size_t s = 0; s < 2500; ++s) {
    const int32_t length = starts[s + 1] - starts[s];
    ASSERT_EQ(built.tile_starts.as<int32_t>()[s], tiles);
    ASSERT_EQ(built.block_starts.as<int32_t>()[s], blocks);
    for (int32_t i = 0; i < length; ++i) {
      ASSERT_EQ(built.positions.as<int32_t>()[static_cast<size_t>(starts[s] + i)], i);
    }
    tiles += (length + 15) / 16;
    blocks += (length + 31) / 32;
  }
  EXPECT_EQ(built.tile_starts.as<int32_t>().back(), tiles);
  EXPECT_EQ(built.block_starts.as<int32_t>().back(), blocks);
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
  support::expect_kernel_error(
      [] {
        build({1, 10}, 10, 16);
      },
      "build_segment_grid: starts[0] is 1, expected 0", "starts[0] is not 0");
  support::expect_kernel_error(
      [] {
        build({0, 7, 5, 10}, 10, 16);
      },
      "build_segment_grid: starts[2] is 5, expected at least starts[1] = 7",
      "starts does not ascend");
  support::expect_kernel_error(
      [] {
        build({0, 9}, 10, 16);
      },
      "build_segment_grid: the last of starts is 9, expected tokens = 10",
      "the last of starts is not tokens");
  support::expect_error(
      [] {
        build({0, 10}, 10, 24);
      },
      "build_segment_grid: block is 24 tokens, expected a multiple of 16");
  support::expect_error([] { build({0}, 0, 16); },
                        "build_segment_grid: starts is [1], expected [segments + 1]");
}

/// Arguments of build_sharded_grid that are right: of segments of 100, 0 and 40 tokens, with blocks
/// of 32, tokens 10 to 49 and 90 to 99 of the first and 7 to 8 of the last.
struct Sharded {
  std::vector<int32_t> starts{0, 40, 50, 50, 52, 52};
  std::vector<int32_t> firsts{10, 90, 0, 7, 7};
  std::vector<int32_t> piece_segments{0, 0, 1, 2, 2};
  std::vector<int32_t> run_starts{0, 50, 70, 79};
  std::vector<int32_t> run_firsts{0, 80, 0};
  std::vector<int32_t> run_segments{0, 0, 2};
  std::vector<int32_t> block_starts{0, 4, 4, 6};
  int64_t tokens = 52;
  int64_t block = 32;
  int64_t key_rows = 80;
};

/// Calls check(grid) while its memory is there.
template <class Check>
void with_grid(const Sharded& a, Check&& check) {
  Stream stream{support::device()};
  const Tensor starts = from_ints(a.starts);
  const Tensor firsts = from_ints(a.firsts);
  const Tensor piece_segments = from_ints(a.piece_segments);
  const Tensor run_starts = from_ints(a.run_starts);
  const Tensor run_firsts = from_ints(a.run_firsts);
  const Tensor run_segments = from_ints(a.run_segments);
  const Tensor block_starts = from_ints(a.block_starts);
  const Tensor positions(DType::kI32, {a.tokens});
  const Tensor tile_starts(DType::kI32, starts.shape());
  check(build_sharded_grid(stream, {.positions = positions,
                                    .tile_starts = tile_starts,
                                    .starts = starts,
                                    .firsts = firsts,
                                    .piece_segments = piece_segments,
                                    .run_starts = run_starts,
                                    .run_firsts = run_firsts,
                                    .run_segments = run_segments,
                                    .block_starts = block_starts,
                                    .block = a.block,
                                    .key_rows = a.key_rows}));
}

TEST(ShardedGrid, NumbersTilesOverPieces) {
  with_grid({}, [](const SegmentGrid& grid) {
    // Positions 10 .. 49: tiles 0 .. 3; 90 .. 99: tiles 5 and 6; 7 .. 8: a part of tile 0.
    EXPECT_EQ(values(grid.tile_starts), (std::vector<double>{0, 4, 6, 6, 7, 7}));
    const std::vector<double> positions = values(grid.positions);
    EXPECT_EQ(positions[0], 10);
    EXPECT_EQ(positions[39], 49);
    EXPECT_EQ(positions[40], 90);
    EXPECT_EQ(positions[50], 7);
    EXPECT_EQ(grid.pieces(), 5);
    EXPECT_EQ(grid.segments(), 3);
    EXPECT_EQ(grid.keys(), 80);
    EXPECT_EQ(grid.max_blocks(), 80 / 32 + 3);
    EXPECT_EQ(grid.max_tiles(), 52 / 16 + 10);
    const auto expect_tile = [&](int64_t tile, const cpu::GridRange& wanted) {
      const cpu::GridRange found = cpu::find_tile(grid, tile);
      EXPECT_EQ(found.segment, wanted.segment) << tile;
      EXPECT_EQ(found.first, wanted.first) << tile;
      EXPECT_EQ(found.tokens, wanted.tokens) << tile;
      EXPECT_EQ(found.number, wanted.number) << tile;
      EXPECT_EQ(found.position, wanted.position) << tile;
    };
    expect_tile(0, {0, 0, 6, 0, 10});
    expect_tile(1, {0, 6, 16, 1, 16});
    expect_tile(3, {0, 38, 2, 3, 48});
    expect_tile(4, {0, 40, 6, 5, 90});
    expect_tile(5, {0, 46, 4, 6, 96});
    expect_tile(6, {2, 50, 2, 0, 7});
  });
}

TEST(ShardedGrid, FindsTheKeysOfABlock) {
  with_grid({}, [](const SegmentGrid& grid) {
    const auto found = [&](int64_t block) { return cpu::find_block(grid, block); };
    EXPECT_EQ(found(0).tokens, 32);
    EXPECT_EQ(found(1).first, 32);
    EXPECT_EQ(found(1).tokens, 18);  // up to the end of the run
    EXPECT_EQ(found(2).tokens, 0);   // keys 80 to 95 are here, but not its first
    EXPECT_EQ(found(3).first, 66);
    EXPECT_EQ(found(3).tokens, 4);
    EXPECT_EQ(found(4).segment, 2);
    EXPECT_EQ(found(4).first, 70);
    EXPECT_EQ(found(4).tokens, 9);
    EXPECT_EQ(found(5).tokens, 0);
  });
}

TEST(ShardedGrid, CutsPiecesIntoPartsAtMultiplesOfTheLength) {
  with_grid({}, [](const SegmentGrid& grid) {
    const cpu::Stretches pieces = cpu::pieces_of(grid);
    for (const int64_t length : {1, 16, 48, 1000}) {
      int64_t row = 0;
      for (int64_t i = 0; i < cpu::part_bound(pieces, length); ++i) {
        const cpu::StretchPart part = cpu::find_part(pieces, length, i);
        if (part.count == 0) continue;
        EXPECT_EQ(pieces.origin(part.stretch) + part.first, row) << length;
        EXPECT_EQ(part.first / length, (part.first + part.count - 1) / length) << length;
        row += part.count;
      }
      EXPECT_EQ(row, 52) << length;
    }
  });
}

TEST(ShardedGrid, SaysWhatIsWrong) {
  const auto expect = [](const std::function<void(Sharded&)>& change, const std::string& sentence) {
    Sharded wrong;
    change(wrong);
    support::expect_error([&] { with_grid(wrong, [](const SegmentGrid&) {}); },
                          "build_sharded_grid: " + sentence);
  };
  expect([](Sharded& x) { x.block = 24; }, "block is 24 tokens, expected a multiple of 16");
  expect(
      [](Sharded& x) {
        x.firsts = {10, 90, 0, 7};
      },
      "firsts is i32 [4], expected i32 [pieces] = [5]");
  expect([](Sharded& x) { x.run_firsts = {0}; },
         "run_firsts is i32 [1], expected i32 [runs] = [3]");
}

TEST(ShardedGrid, KernelsFindWrongNumbers) {
  const auto expect = [](const std::function<void(Sharded&)>& change, const std::string& sentence,
                         const std::string& on_gpu) {
    Sharded wrong;
    change(wrong);
    support::expect_kernel_error([&] { with_grid(wrong, [](const SegmentGrid&) {}); },
                                 "build_sharded_grid: " + sentence, on_gpu);
  };
  expect([](Sharded& x) { x.key_rows = 78; },
         "the last of run_starts is 79, expected at most key_rows = 78",
         "the last of run_starts is above key_rows");
  expect([](Sharded& x) { x.tokens = 53; }, "the last of starts is 52, expected tokens = 53",
         "the last of starts is not tokens");
  expect(
      [](Sharded& x) {
        x.run_starts = {0, 50, 40, 79};
      },
      "run_starts[2] is 40, expected at least run_starts[1] = 50", "run_starts does not ascend");
  expect(
      [](Sharded& x) {
        x.piece_segments = {0, 0, 1, 0, 2};
      },
      "piece 3 is of segment 0, expected 1 to 2", "segments of pieces or runs do not ascend");
  expect(
      [](Sharded& x) {
        x.run_segments = {0, 0, 3};
      },
      "run 2 is of segment 3, expected 0 to 2", "segments of pieces or runs do not ascend");
  expect(
      [](Sharded& x) {
        x.firsts = {10, 49, 0, 7, 7};
      },
      "piece 1 begins at position 49, expected at least 50", "pieces or runs of a segment overlap");
  expect(
      [](Sharded& x) {
        x.firsts = {-1, 90, 0, 7, 7};
      },
      "piece 0 begins at position -1, expected at least 0", "pieces or runs of a segment overlap");
  expect(
      [](Sharded& x) {
        x.run_firsts = {0, 110, 0};
      },
      "run 1 ends at position 130, but the blocks of its segment at 128",
      "ends behind the blocks of its segment");
  expect(
      [](Sharded& x) {
        x.block_starts = {0, 4, 3, 6};
      },
      "block_starts[2] is 3, expected at least block_starts[1] = 4",
      "block_starts does not ascend");
}

}  // namespace
}  // namespace tessera
