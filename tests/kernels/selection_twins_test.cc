#include <gtest/gtest.h>

#include <limits>

#include "kernels/block_selection.h"
#include "tests/support/compare.h"
#include "tests/support/selection.h"
#include "tests/support/sharded_grid.h"

// The choice is made of whole numbers, so every device makes the same one: here the kernels of
// support::device() are compared with the functions of the CPU, bit by bit, on many shapes.

namespace tessera {
namespace {

using support::Segments;
using support::Selection;
using support::ShardedGrid;
using support::Tensor;

constexpr int64_t kGroups = 2;

enum class Values { kRandom, kTies, kSomeNotFinite };

struct Case {
  std::vector<int64_t> lengths;
  int64_t block;
  BlockRule rule;
  int64_t gate_dim;
  int64_t gate_keys = 1;
  TreeSearch tree = {};
};

struct Inputs {
  Tensor qt;
  Tensor kt;
};

Tensor make_values(Values values, const Shape& shape, uint64_t seed, int32_t least) {
  if (values != Values::kTies) return support::random_tensor(DType::kF32, shape, seed);
  const Tensor ints = support::random_ints(shape, seed, least, 2);
  Tensor floats(DType::kF32, shape);
  std::ranges::copy(ints.as<int32_t>(), floats.as<float>().begin());
  return floats;
}

Inputs make_inputs(const Case& c, const SegmentGrid& grid, Values values, uint64_t seed) {
  Inputs in{
      make_values(values, {kGroups, grid.tokens(), c.gate_dim}, seed, -1),
      make_values(values, {kGroups, grid.max_blocks() * c.gate_keys, c.gate_dim}, seed + 1, 0)};
  if (values != Values::kSomeNotFinite) return in;
  const float infinity = std::numeric_limits<float>::infinity();
  const float odd[] = {std::numeric_limits<float>::quiet_NaN(), infinity, -infinity};
  const auto keys = in.kt.as<float>();
  for (size_t i = 0; i < keys.size(); ++i) {
    const auto words = philox(seed, 7, i);
    if (words[0] % 97 == 0) keys[i] = odd[words[1] % 3];
  }
  return in;
}

/// What a device makes of the inputs: the selection, and the lists of it.
std::vector<Tensor> choose(const Case& c, const SegmentGrid& grid, const Inputs& in,
                           bool on_device) {
  Stream stream{on_device ? support::device() : Device{}};
  Selection selection(kGroups, grid.tokens(), c.rule.kept);
  const Tensor nodes = support::filled(
      DType::kF32, {kGroups, c.tree.enabled() ? tree_rows(grid.max_blocks()) : 1, c.gate_dim}, 1e6);
  const ScoreSelect select{.selection = selection.view(),
                           .qt = in.qt.view(),
                           .kt = in.kt.view(),
                           .grid = grid,
                           .rule = c.rule,
                           .gate_keys = c.gate_keys,
                           .tree = c.tree,
                           .nodes = c.tree.enabled() ? nodes.view() : TensorView{}};
  int64_t longest = 0;
  for (const int64_t length : c.lengths) longest = std::max(longest, length);
  const int64_t capacity =
      std::max<int64_t>(1, piece_list_capacity(grid.max_tiles(), longest, c.block, c.rule));
  std::vector<Tensor> lists;
  const auto make = [&](DType dtype, int64_t columns) {
    lists.push_back(support::filled(dtype, {kGroups, columns}, 77));
    return lists.back().view();
  };
  const BuildBlockLists build{.lists = {.tile_offsets = make(DType::kI32, grid.max_tiles() + 1),
                                        .tile_blocks = make(DType::kI32, capacity),
                                        .tile_masks = make(DType::kU16, capacity),
                                        .block_offsets = make(DType::kI32, grid.max_blocks() + 1),
                                        .block_tiles = make(DType::kI32, capacity),
                                        .block_masks = make(DType::kU16, capacity)},
                              .selection = selection.view(),
                              .grid = grid};
  if (on_device) {
    score_select(stream, select);
    build_block_lists(stream, build);
  } else {
    cpu::score_select(stream.threads(), select);
    cpu::build_block_lists(stream.threads(), build);
  }
  std::vector<Tensor> all = selection.take();
  for (Tensor& list : lists) all.push_back(std::move(list));
  return all;
}

void expect_same(const Case& c, const SegmentGrid& grid, Values values, uint64_t seed) {
  const Inputs in = make_inputs(c, grid, values, seed);
  const std::vector<Tensor> expected = choose(c, grid, in, false);
  const std::vector<Tensor> found = choose(c, grid, in, true);
  for (size_t i = 0; i < expected.size(); ++i) {
    support::expect_same_bits(found[i], expected[i], concat("output ", i, ", seed ", seed));
  }
}

void expect_same(const Case& c) {
  const Segments segments(c.lengths, c.block);
  for (const Values values : {Values::kTies, Values::kRandom, Values::kSomeNotFinite}) {
    expect_same(c, segments.grid(), values, static_cast<uint64_t>(c.gate_dim));
  }
}

TEST(SelectionTwins, ShapesThatFillNoTile) {
  expect_same({{0, 37, 0, 0, 171, 1, 16, 0}, 16, {0, 1, 3}, 20});
  expect_same({{5, 160, 33}, 32, {1, 1, 1}, 5, 4});
}

TEST(SelectionTwins, BlocksThatAreNoPowerOfTwo) {
  expect_same({{333}, 48, {2, 2, 2}, 1, 3});
}

TEST(SelectionTwins, MoreThanThereIs) {
  expect_same({{130}, 16, {1, 2, 1000}, 8});
}

TEST(SelectionTwins, LongGateKeys) {
  expect_same({{320}, 64, {1, 2, 1}, 130, 2});
}

/// A few tokens at the end of a long segment, and in its middle.
support::Share late_tokens(int64_t tokens) {
  return {{tokens / 2, tokens / 2 + 7}, {tokens - 20, tokens}};
}

TEST(SelectionTwins, MoreCandidatesThanFitAtOnce) {
  // Late tokens have more than 64 candidates, and more than the 96 or 160 that are kept.
  Case c{{3300}, 16, {0, 1, 5}, 6};
  for (const int64_t kept : {5, 60}) {
    c.rule.kept = kept;
    const Segments segments(c.lengths, c.block);
    Stream stream{support::device()};
    const ShardedGrid late(stream, segments, late_tokens(3300), {.whole = true});
    for (const Values values : {Values::kTies, Values::kRandom, Values::kSomeNotFinite}) {
      expect_same(c, late.grid(), values, 1);
    }
  }
}

TEST(SelectionTwins, MoreGateKeysThanFitAtOnce) {
  expect_same({{390}, 80, {0, 1, 1}, 3, 80});
}

TEST(SelectionTwins, SomeTokensOfLongBlocks) {
  Case c{{1500, 300}, 64, {1, 1, 4}, 68};
  const Segments segments(c.lengths, c.block);
  Stream stream{support::device()};
  for (const support::Share& share : support::dealt_shares(segments.tokens(), 6, 101)) {
    if (share.size() % 2 == 0) continue;
    const ShardedGrid part(stream, segments, share, {.whole = true});
    expect_same(c, part.grid(), Values::kTies, 3);
  }
}

void expect_same_in_tree(const Case& c) {
  const Segments segments(c.lengths, c.block);
  Stream stream{support::device()};
  const ShardedGrid late(stream, segments, late_tokens(c.lengths[0]), {.whole = true});
  for (const Values values : {Values::kTies, Values::kRandom, Values::kSomeNotFinite}) {
    expect_same(c, late.grid(), values, 5);
  }
}

TEST(SelectionTwins, DownATreeOfFours) {
  expect_same_in_tree({{1500, 100}, 16, {1, 2, 2}, 7, 1, {4, 1}});
  expect_same_in_tree({{1500}, 32, {0, 1, 2}, 8, 1, {4, 1}});
}

TEST(SelectionTwins, DownATreeOfEights) {
  expect_same_in_tree({{5000}, 16, {2, 3, 6}, 20, 1, {8, 11}});
}

TEST(SelectionTwins, DownATreeOfSixteens) {
  expect_same_in_tree({{5000}, 16, {1, 2, 17}, 5, 1, {16, 1}});
}

// Shapes nobody thought of.
TEST(SelectionTwins, RandomShapes) {
  for (uint64_t seed = 0; seed < 12; ++seed) {
    uint64_t draw = 0;
    const auto pick = [&](int64_t low, int64_t high) {
      return low + static_cast<int64_t>(philox(seed, 9, draw++)[0] %
                                        static_cast<uint64_t>(high - low + 1));
    };
    Case c{};
    for (int64_t i = pick(1, 3); i > 0; --i) c.lengths.push_back(pick(0, 3) * pick(0, 90));
    c.block = 16 * pick(1, 4);
    c.rule = {pick(0, 2), pick(1, 3), pick(1, 6)};
    c.gate_dim = pick(1, 33);
    c.gate_keys = int64_t{1} << pick(0, 4);
    expect_same(c, Segments(c.lengths, c.block).grid(), static_cast<Values>(seed % 3), seed);
  }
}

}  // namespace
}  // namespace tessera
