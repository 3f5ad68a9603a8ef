#include "kernels/gate_stats.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/choices.h"
#include "tests/support/compare.h"

namespace tessera {

namespace {

using support::filled;
using support::Segments;
using support::Selection;
using support::Tensor;

constexpr double kStrength = 0.75;
const std::vector<double> kWidths{0.5, 2};

// Block by block: forced, chosen, or idle.
std::vector<double> count_blocks(const Segments& segments, const BlockRule& rule,
                                 const Selection& selection) {
  std::vector<double> stats(4);
  for (int64_t c = 0; c < 2; ++c) {
    for (int64_t i = 0; i < segments.tokens(); ++i) {
      const int64_t own = segments.own_block(i);
      const auto blocks = selection.row_of_blocks(c, i);
      const auto scores = selection.row_of_scores(c, i);
      const auto kept = static_cast<size_t>(rule.kept);
      double idle = 0;
      for (int64_t b = 0; b <= own; ++b) {
        const bool forced = b < rule.sink_blocks || b > own - rule.window_blocks;
        size_t slot = 0;
        while (slot < kept && blocks[slot] != b) ++slot;
        if (!forced && slot == kept) idle += 1;
        if (slot == kept) continue;
        const double u = (static_cast<double>(scores[slot]) - static_cast<double>(scores[kept])) /
                         kWidths[static_cast<size_t>(c)];
        stats[2] += 1;
        stats[3] += blocks[kept] < 0 || u >= 1 ? 1 : 1 - kStrength * (1 - u);
      }
      stats[0] += 1;
      stats[1] += idle / static_cast<double>(own + 1);
    }
  }
  return stats;
}

TEST(GateStats, AddsWhatCountingBlockByBlockGives) {
  const Segments segments({100, 0, 37, 260}, 16);
  for (const BlockRule& rule : {BlockRule{1, 2, 3}, BlockRule{0, 1, 4}, BlockRule{3, 2, 2}}) {
    const Selection selection = support::choose_at_random(segments, rule, 2, 5);
    std::vector<double> expected = count_blocks(segments, rule, selection);
    for (double& v : expected) v += 10;
    ASSERT_GT(expected[1], 12) << "nothing was dropped";
    Stream stream{support::device()};
    const Tensor stats = filled(DType::kF32, {GateStats::kSize}, 10);
    const Tensor widths = support::from_doubles(DType::kF32, {2}, kWidths);
    gate_stats(stream, {.stats = stats,
                        .selection = selection.view(),
                        .grid = segments.grid(),
                        .rule = rule,
                        .ramp = {static_cast<float>(kStrength), widths}});
    for (size_t i = 0; i < 4; ++i) {
      EXPECT_NEAR(stats.as<float>()[i], expected[i], 1e-5 * expected[i]) << "stats[" << i << "]";
    }
  }
}

// Every 1024th token of a segment, where the tree was used: of 2100 tokens that at 2047 alone, with
// 126 candidates; that at 1023 has 62, so that radix 8 scores them all.
TEST(GateStats, SamplesTheRecallOfATree) {
  const Segments segments({100, 2100, 37}, 16);
  const BlockRule rule{1, 1, 7};
  const TreeSearch tree{.radix = 8, .beam = 1};
  const Shape keys{2, segments.grid().max_blocks(), 6};
  const Tensor qt = support::random_tensor(DType::kF32, {2, segments.tokens(), 6}, 1);
  const Tensor kt = support::random_tensor(DType::kF32, keys, 2);
  const Tensor nodes(DType::kF32, keys.with(1, tree_rows(keys[1])));
  Stream stream{support::device(), 2};
  Stream chooser{Device{}, 2};  // the statistics are what is tested
  const auto choose = [&](const TreeSearch& with) {
    Selection selection(2, segments.tokens(), rule.kept);
    score_select(chooser, {selection.view(), qt, kt, segments.grid(), rule, 1, with, nodes});
    return selection;
  };
  const Selection found = choose(tree);
  const Selection flat = choose({});
  double common = 0;
  for (int64_t c = 0; c < 2; ++c) {
    const auto best = flat.row_of_blocks(c, 100 + 2047).first(7);
    for (const int32_t b : found.row_of_blocks(c, 100 + 2047).first(7)) {
      common += std::ranges::count(best, b) > 0;
    }
  }
  ASSERT_GT(common, 0);
  ASSERT_LT(common, 14) << "the tree missed nothing";
  const Tensor stats(DType::kF32, {GateStats::kSize});
  const Tensor widths = support::from_doubles(DType::kF32, {2}, kWidths);
  gate_stats(stream, {stats, found.view(), segments.grid(), rule, {0.5f, widths}, tree, qt, kt});
  EXPECT_EQ(stats.as<float>()[4], common);
  EXPECT_EQ(stats.as<float>()[5], 14);
}

TEST(GateStats, RefusesOtherShapes) {
  const Segments segments({32}, 16);
  const Selection selection(2, 32, 1);
  Stream stream{Device{DeviceKind::kPlan}};
  const auto count = [&](Shape stats, Shape widths, const Selection& of) {
    gate_stats(stream, {.stats = support::plan_view(DType::kF32, stats),
                        .selection = of.view(),
                        .grid = segments.grid(),
                        .rule = {1, 1, 1},
                        .ramp = {0.5f, support::plan_view(DType::kF32, widths)}});
  };
  support::expect_error([&] { count({3}, {2}, selection); },
                        "gate_stats: stats is [3], expected [6]");
  support::expect_error([&] { count({6}, {1}, selection); },
                        "gate_stats: widths is [1], expected [groups] = [2]");
  support::expect_error([&] { count({6}, {2}, Selection(2, 31, 1)); },
                        "gate_stats: scores is [2, 31, 2], expected [groups, 32 tokens, k + 1]");
  const TensorView stats = support::plan_view(DType::kF32, {6});
  const TensorView widths = support::plan_view(DType::kF32, {2});
  const TensorView qt = support::plan_view(DType::kF32, {2, 32, 5});
  support::expect_error(
      [&] {
        gate_stats(stream, {stats,
                            selection.view(),
                            segments.grid(),
                            {1, 1, 1},
                            {0.5f, widths},
                            {8, 1},
                            qt,
                            support::plan_view(DType::kF32, {2, 4, 5})});
      },
      "gate_stats: kt is f32 [2, 4, 5], expected f32 [groups, max_blocks, gate_dim] = [2, 3, 5]");
}

}  // namespace

}  // namespace tessera
