#include <gtest/gtest.h>

#include <bit>
#include <set>

#include "kernels/block_selection.h"
#include "kernels/gate_backward.h"
#include "kernels/gate_pool.h"
#include "kernels/gate_stats.h"
#include "tests/support/choices.h"
#include "tests/support/compare.h"
#include "tests/support/sharded_grid.h"
#include "tests/support/tolerance.h"

// The gate on ranks that have some of the tokens, put together, is the gate on one rank: the same
// bits where nothing is summed over ranks.

namespace tessera {
namespace {

using support::KeyReach;
using support::Segments;
using support::Selection;
using support::ShardedGrid;
using support::Share;
using support::Sum;
using support::take_rows;
using support::Tensor;

constexpr int64_t kGroups = 2;
constexpr int64_t kD = 20;
constexpr int64_t kGateDim = 12;
constexpr BlockRule kRule{.sink_blocks = 1, .window_blocks = 2, .kept = 3};

Tensor random(int64_t rows, int64_t width, uint64_t seed) {
  return support::random_tensor(DType::kF32, {kGroups, rows, width}, seed);
}
Tensor garbage(int64_t rows, int64_t width) {
  return support::filled(DType::kF32, {kGroups, rows, width}, 77);
}

/// Pooling of all tokens, or of the keys of one rank.
struct Pool {
  Tensor k0, kbar, alpha, dk0;
  Tensor dr{DType::kF32, {kGroups, kD}};

  Pool(Stream& stream, const SegmentGrid& grid, Tensor keys, const Tensor& r, const Tensor& dkbar,
       int64_t gate_keys)
      : k0(std::move(keys)),
        kbar(garbage(dkbar.shape()[1], kD)),
        alpha(support::filled(DType::kF32, {kGroups, k0.shape()[1]}, 77)),
        dk0(support::filled(DType::kF32, k0.shape(), 77)) {
    gate_pool_forward(stream, {kbar.view(), alpha.view(), k0.view(), r.view(), grid, gate_keys});
    gate_pool_backward(stream, {dk0.view(), dr.view(), dkbar.view(), kbar.view(), alpha.view(),
                                k0.view(), r.view(), grid, gate_keys});
  }
};

TEST(ShardedGate, PoolingIsWhole) {
  Stream stream{support::device(), 2};
  for (const int64_t gate_keys : {1, 4}) {
    const Segments segments(support::sharded_lengths(), 32);
    const int64_t tokens = segments.tokens();
    const Tensor r = support::random_tensor(DType::kF32, {kGroups, kD}, 2, 0.5);
    const Tensor dkbar = random(segments.grid().max_blocks() * gate_keys, kD, 3);
    const Pool whole(stream, segments.grid(), random(tokens, kD, 1), r, dkbar, gate_keys);
    for (const std::vector<Share>& shares : support::share_layouts(tokens)) {
      Sum kbar{whole.kbar.shape()};
      Sum alpha{whole.alpha.shape()};
      Sum dk0{whole.dk0.shape()};
      Sum dr{whole.dr.shape()};
      for (const Share& share : shares) {
        const ShardedGrid grid(stream, segments, share, {.before = 31, .spare_rows = 2});
        const Pool part(stream, grid.grid(), take_rows(whole.k0, 1, grid.key_tokens()), r, dkbar,
                        gate_keys);
        kbar.add(part.kbar);
        alpha.add(part.alpha, 1, grid.key_tokens());
        dk0.add(part.dk0, 1, grid.key_tokens());
        dr.add(part.dr);
      }
      // Every block is pooled by one rank: all others add 0.
      EXPECT_EQ(kbar.values, support::to_doubles(whole.kbar));
      EXPECT_EQ(alpha.values, support::to_doubles(whole.alpha));
      EXPECT_EQ(dk0.values, support::to_doubles(whole.dk0));
      support::expect_close(whole.dr, dr.values, support::tolerance(DType::kF32), "dr");
    }
  }
}

/// Choices of all tokens, or of those of one rank, and the backward of their scores.
struct Chooser {
  Selection selection;
  Tensor dqt, dkt;
  Tensor stats{DType::kF32, {GateStats::kSize}};

  Chooser(Stream& stream, const SegmentGrid& grid, const Tensor& qt, const Tensor& kt,
          const Tensor& dscores, int64_t gate_keys, const TreeSearch& tree)
      : selection(kGroups, grid.tokens(), kRule.kept),
        dqt(garbage(grid.tokens(), kGateDim)),
        dkt(garbage(kt.shape()[1], kGateDim)) {
    const Tensor nodes = garbage(tree_rows(grid.max_blocks()), kGateDim);
    score_select(stream, {selection.view(), qt.view(), kt.view(), grid, kRule, gate_keys, tree,
                          nodes.view()});
    score_backward(stream, {dqt.view(), dkt.view(), dscores.view(), selection.view(), qt.view(),
                            kt.view(), grid, gate_keys});
    const Tensor widths = support::filled(DType::kF32, {kGroups}, 1.5);
    gate_stats(stream, {stats.view(),
                        selection.view(),
                        grid,
                        kRule,
                        {0.7f, widths.view()},
                        tree,
                        qt.view(),
                        kt.view()});
  }
};

void expect_choosing_is_whole(const std::vector<int64_t>& lengths, int64_t gate_keys,
                              const TreeSearch& tree) {
  Stream stream{support::device(), 2};
  const Segments segments(lengths, 16);
  const int64_t tokens = segments.tokens();
  const Tensor qt = random(tokens, kGateDim, 4);
  const Tensor kt = random(segments.grid().max_blocks() * gate_keys, kGateDim, 5);
  const Tensor dscores = random(tokens, kRule.kept + 1, 6);
  // Some blocks have equal keys, so that scores tie.
  const auto keys = kt.as<float>();
  const auto block_numbers = static_cast<std::ptrdiff_t>(gate_keys * kGateDim);
  std::copy_n(keys.begin() + 8 * block_numbers, 4 * block_numbers,
              keys.begin() + 12 * block_numbers);
  const Chooser whole(stream, segments.grid(), qt, kt, dscores, gate_keys, tree);
  EXPECT_EQ(whole.stats.as<float>()[5] > 0, tree.enabled());
  for (const std::vector<Share>& shares : support::share_layouts(tokens)) {
    Sum dqt{whole.dqt.shape()};
    Sum dkt{whole.dkt.shape()};
    Sum stats{whole.stats.shape()};
    for (const Share& share : shares) {
      const ShardedGrid grid(stream, segments, share, {.whole = true});
      const std::vector<int64_t>& own = grid.query_tokens();
      const Chooser part(stream, grid.grid(), take_rows(qt, 1, own), kt, take_rows(dscores, 1, own),
                         gate_keys, tree);
      for (int64_t c = 0; c < kGroups; ++c) {
        for (size_t i = 0; i < own.size(); ++i) {
          const auto row = static_cast<int64_t>(i);
          ASSERT_TRUE(std::ranges::equal(part.selection.row_of_blocks(c, row),
                                         whole.selection.row_of_blocks(c, own[i])));
          ASSERT_TRUE(std::ranges::equal(part.selection.row_of_scores(c, row),
                                         whole.selection.row_of_scores(c, own[i])));
          ASSERT_EQ(part.selection.count(c, row), whole.selection.count(c, own[i]));
        }
      }
      dqt.add(part.dqt, 1, own);
      dkt.add(part.dkt);
      stats.add(part.stats);
    }
    EXPECT_EQ(dqt.values, support::to_doubles(whole.dqt));
    support::expect_close(whole.dkt, dkt.values, support::tolerance(DType::kF32), "dkt");
    support::expect_close(whole.stats, stats.values, 1e-12, "stats");
  }
}

TEST(ShardedGate, ChoosingIsWhole) {
  expect_choosing_is_whole(support::sharded_lengths(), 1, {});
  expect_choosing_is_whole(support::sharded_lengths(), 2, {});
}

TEST(ShardedGate, ChoosingThroughATreeIsWhole) {
  // Long enough that each token of the middle segment but the first goes through the tree.
  expect_choosing_is_whole({50, 0, 1301, 33}, 1, {.radix = 4, .beam = 1});
}

/// (token, block) pairs of one group that the lists name. Reads masks by the definition: bit t is
/// the token at a position with position % 16 = t.
using Pairs = std::set<std::pair<int64_t, int64_t>>;

Pairs listed_by_tile(const ShardedGrid& grid, const Segments& segments, const BlockLists& lists,
                     int64_t c) {
  Pairs pairs;
  const auto offsets = lists.tile_offsets.rows(c, 1).as<int32_t>();
  const auto blocks = lists.tile_blocks.rows(c, 1).as<int32_t>();
  const auto masks = lists.tile_masks.rows(c, 1).as<uint16_t>();
  // Tiles in the order of rows: a new one wherever floor(position / 16) or the piece is another.
  const auto starts = grid.grid().starts.as<int32_t>();
  const std::vector<int64_t>& own = grid.query_tokens();
  size_t tile = 0;
  for (size_t i = 0; i < own.size(); ++i) {
    const int64_t position = segments.position(own[i]);
    const bool new_piece = std::ranges::find(starts, static_cast<int32_t>(i)) != starts.end();
    if (i > 0 && (new_piece || position % 16 == 0)) ++tile;
    for (auto e = static_cast<size_t>(offsets[tile]); e < static_cast<size_t>(offsets[tile + 1]);
         ++e) {
      if ((masks[e] >> (position % 16) & 1) != 0) pairs.insert({own[i], blocks[e]});
    }
  }
  EXPECT_EQ(static_cast<int64_t>(tile) + 1, cpu::tile_count(grid.grid()));
  return pairs;
}

/// How many bits the masks of one group hold.
int64_t bits(const TensorView& offsets, const TensorView& masks, int64_t c) {
  int64_t count = 0;
  const auto end = static_cast<size_t>(offsets.rows(c, 1).as<int32_t>().back());
  for (size_t e = 0; e < end; ++e) count += std::popcount(masks.rows(c, 1).as<uint16_t>()[e]);
  return count;
}

TEST(ShardedGate, ListsHoldWhatTheTokensChose) {
  Stream stream{support::device(), 2};
  const Segments segments(support::sharded_lengths(), 32);
  const Selection whole = support::choose_at_random(segments, kRule, kGroups, 9);
  for (const std::vector<Share>& shares : support::share_layouts(segments.tokens())) {
    for (const Share& share : shares) {
      const ShardedGrid grid(stream, segments, share, {.whole = true});
      const std::vector<int64_t>& own = grid.query_tokens();
      Selection selection(kGroups, static_cast<int64_t>(own.size()), kRule.kept);
      std::vector<Pairs> expected(kGroups);
      for (int64_t c = 0; c < kGroups; ++c) {
        for (size_t i = 0; i < own.size(); ++i) {
          const auto row = static_cast<int64_t>(i);
          const int64_t count = selection.count(c, row) = whole.count(c, own[i]);
          std::ranges::copy(whole.row_of_blocks(c, own[i]),
                            selection.row_of_blocks(c, row).begin());
          for (int64_t s = 0; s < count; ++s) {
            expected[static_cast<size_t>(c)].insert(
                {own[i], whole.row_of_blocks(c, own[i])[static_cast<size_t>(s)]});
          }
        }
      }
      const int64_t capacity = piece_list_capacity(grid.grid().max_tiles(), 301, 32, kRule);
      const auto make = [&](DType dtype, int64_t columns) {
        return support::filled(dtype, {kGroups, columns}, 77);
      };
      const Tensor tile_offsets = make(DType::kI32, grid.grid().max_tiles() + 1);
      const Tensor block_offsets = make(DType::kI32, grid.grid().max_blocks() + 1);
      const Tensor tile_blocks = make(DType::kI32, capacity);
      const Tensor tile_masks = make(DType::kU16, capacity);
      const Tensor block_tiles = make(DType::kI32, capacity);
      const Tensor block_masks = make(DType::kU16, capacity);
      const BlockLists lists{tile_offsets,  tile_blocks, tile_masks,
                             block_offsets, block_tiles, block_masks};
      build_block_lists(stream, {lists, selection.view(), grid.grid()});
      for (int64_t c = 0; c < kGroups; ++c) {
        const Pairs& wanted = expected[static_cast<size_t>(c)];
        EXPECT_EQ(listed_by_tile(grid, segments, lists, c), wanted);
        EXPECT_EQ(bits(lists.tile_offsets, lists.tile_masks, c), std::ssize(wanted));
        EXPECT_EQ(bits(lists.block_offsets, lists.block_masks, c), std::ssize(wanted));
      }
    }
  }
}

TEST(ShardedGate, RowsAreCountedOnce) {
  Stream stream{support::device()};
  const Segments segments(support::sharded_lengths(), 16);
  const int64_t whole = count_gate_rows(segments.starts().as<int32_t>(), 16, kRule);
  EXPECT_GT(whole, 0);
  for (const std::vector<Share>& shares : support::share_layouts(segments.tokens())) {
    int64_t rows = 0;
    for (const Share& share : shares) {
      const ShardedGrid grid(stream, segments, share, {});
      rows += count_gate_rows(grid.grid().starts.as<int32_t>(), 16, kRule,
                              grid.grid().firsts.as<int32_t>());
    }
    EXPECT_EQ(rows, whole);
  }
}

TEST(ShardedGate, CapacityHoldsForTheEndOfALongSegment) {
  // 20 tiles at the end of 1000 tokens: block 62 is the last, with candidates 1 to 60.
  EXPECT_EQ(piece_list_capacity(20, 1000, 16, kRule), 20 * 16 * 3);
  const BlockRule all{.sink_blocks = 1, .window_blocks = 2, .kept = 1000};
  EXPECT_EQ(piece_list_capacity(20, 1000, 16, all), 20 * 60);
  EXPECT_EQ(piece_list_capacity(20, 16, 16, all), 0);
  support::expect_error([] { piece_list_capacity(1, 100, 24, kRule); },
                        "piece_list_capacity: block is 24, expected a multiple of 16");
  support::expect_error([&] { piece_list_capacity(1 << 24, 1 << 20, 16, all); },
                        "entries, expected less than 2^31");
}

TEST(ShardedGate, SaysWhatIsWrong) {
  Stream stream{support::device()};
  const Segments segments({100}, 32);
  const Tensor r(DType::kF32, {kGroups, kD});
  const Share share{{50, 100}};
  const auto pool = [&](const KeyReach& reach, int64_t blocks) {
    const ShardedGrid grid(stream, segments, share, reach);
    const Tensor dkbar(DType::kF32, {kGroups, blocks, kD});
    Pool(stream, grid.grid(), random(static_cast<int64_t>(grid.key_tokens().size()), kD, 1), r,
         dkbar, 1);
  };
  pool({.before = 31}, 4);
  support::expect_kernel_error(
      [&] { pool({.before = 17}, 4); },
      "gate_pool: of block 1 of segment 0 0 keys are in one run, expected all 32",
      "gate_pool: not all keys of a block are in one run");
  support::expect_kernel_error([&] { pool({.before = 31}, 3); },
                               "gate_pool: kbar has room for 3 blocks, expected at least 4",
                               "gate_pool: kbar has too little room for blocks");
  const ShardedGrid grid(stream, segments, share, {});
  const Tensor kt = random(grid.grid().max_blocks(), kGateDim, 5);
  Selection selection(kGroups, 50, kRule.kept);
  support::expect_kernel_error(
      [&] {
        score_select(stream, {selection.view(), random(50, kGateDim, 4).view(), kt.view(),
                              grid.grid(), kRule, 1});
      },
      "score_select: the grid has 4 blocks, expected at most key_rows / block + segments = 2",
      "score_select: the grid has more than max_blocks blocks");
}

}  // namespace
}  // namespace tessera
