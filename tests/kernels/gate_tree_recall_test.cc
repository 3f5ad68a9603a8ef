#include <gtest/gtest.h>

#include <map>

#include "kernels/block_selection.h"
#include "tests/reference/gate.h"
#include "tests/support/selection.h"
#include "tests/support/sharded_grid.h"

// Property 9b: how many of the best blocks a tree finds, and what that costs.

namespace tessera {
namespace {

using support::Segments;
using support::Selection;
using support::Tensor;

/// The data of property 9b: keys of which 16 neighbours have a part in common, and a query that
/// looks for one of them.
struct Correlated {
  static constexpr int64_t kBlocks = 2048;
  static constexpr int64_t kGateDim = 64;

  Correlated()
      : keys(support::to_doubles(
            support::random_tensor(DType::kF32, {kBlocks, kGateDim}, 11, 0.7))) {
    const std::vector<double> parts =
        support::to_doubles(support::random_tensor(DType::kF32, {kBlocks / 16, kGateDim}, 12, 0.7));
    for (size_t i = 0; i < keys.size(); ++i)
      keys[i] += parts[i / kGateDim / 16 * kGateDim + i % kGateDim];
  }
  std::vector<double> query(uint64_t number) const {
    std::vector<double> q =
        support::to_doubles(support::random_tensor(DType::kF32, {kGateDim}, 1000 + number));
    const auto words = philox(13, 0, number);
    const double strength = 0.3 + 0.9 * words[1] * 0x1p-32;
    for (size_t d = 0; d < q.size(); ++d)
      q[d] += strength * keys[words[0] % kBlocks * kGateDim + d];
    return q;
  }

  std::vector<double> keys;
};

int64_t common(const std::vector<int64_t>& a, const std::vector<int64_t>& b) {
  std::vector<int64_t> both;
  std::ranges::set_intersection(a, b, std::back_inserter(both));
  return std::ssize(both);
}

// Of the reference, whose beams may be narrower than k: what a beam costs and finds.
TEST(GateTreeRecall, RecallGrowsWithTheBeam) {
  constexpr int64_t kQueries = 100;
  const Correlated data;
  const auto levels = reference::gate_tree(data.keys, data.kGateDim, 8, 64);
  const std::map<int64_t, std::pair<double, int64_t>> expected{
      {16, {0.65, 288}}, {32, {0.85, 512}}, {64, {0.96, 768}}, {128, {1.0, 1280}}};
  for (const auto& [beam, figures] : expected) {
    int64_t found = 0;
    for (uint64_t i = 0; i < kQueries; ++i) {
      const std::vector<double> q = data.query(i);
      std::vector<std::vector<double>> scores;
      for (const auto& level : levels) {
        std::vector<double>& z = scores.emplace_back();
        for (int64_t node = 0; node < std::ssize(level) / data.kGateDim; ++node) {
          double sum = 0;
          for (int64_t d = 0; d < data.kGateDim; ++d) {
            sum += q[static_cast<size_t>(d)] * level[static_cast<size_t>(node * data.kGateDim + d)];
          }
          z.push_back(sum);
        }
      }
      const auto score = [&](int64_t level, int64_t node) {
        return scores[static_cast<size_t>(level)][static_cast<size_t>(node)];
      };
      const auto choose = [&](int64_t depth) {
        return reference::choose_in_tree(score, depth, data.kBlocks, 8, beam, 44);
      };
      const reference::TreeChoice tree = choose(std::ssize(levels));
      EXPECT_EQ(tree.scored, figures.second) << "beam " << beam;
      found += common(tree.choice.blocks, choose(1).choice.blocks);
    }
    const double recall = static_cast<double>(found) / (44 * kQueries);
    EXPECT_NEAR(recall, figures.first, 0.03) << "beam " << beam;
  }
}

// The kernel keeps at least k + 1 = 45 nodes: the last tokens of 2049 blocks.
TEST(GateTreeRecall, FindsMostOfTheBestBlocks) {
  const Correlated data;
  const Segments segments({(data.kBlocks + 1) * 16}, 16);
  Stream stream{support::device(), 2};
  // The interpreter of kernels is slow.
  const int64_t tokens = support::device().kind == DeviceKind::kGpu ? 20 : 100;
  const support::ShardedGrid last(
      stream, segments, {{segments.tokens() - tokens, segments.tokens()}}, {.whole = true});
  const SegmentGrid& grid = last.grid();
  const Tensor qt(DType::kF32, {1, grid.tokens(), data.kGateDim});
  const Tensor kt(DType::kF32, {1, grid.max_blocks(), data.kGateDim});
  std::ranges::transform(data.keys, kt.as<float>().begin(),
                         [](double x) { return static_cast<float>(x); });
  for (uint64_t i = 0; i < static_cast<uint64_t>(tokens); ++i) {
    std::ranges::transform(data.query(i),
                           qt.as<float>().begin() + static_cast<int64_t>(i) * data.kGateDim,
                           [](double x) { return static_cast<float>(x); });
  }
  const Tensor nodes(DType::kF32, {1, tree_rows(grid.max_blocks()), data.kGateDim});
  const auto choose = [&](int64_t beam) {
    Selection selection(1, grid.tokens(), 44);
    score_select(stream, {selection.view(), qt, kt, grid, {0, 1, 44}, 1, {8, beam}, nodes});
    return selection;
  };
  const Selection flat = choose(0);
  for (const auto& [beam, least] : std::map<int64_t, double>{{1, 0.88}, {64, 0.94}, {128, 0.98}}) {
    const Selection tree = choose(beam);
    int64_t found = 0;
    for (int64_t i = 0; i < grid.tokens(); ++i) {
      const auto row = [&](const Selection& of) {
        const auto blocks = of.row_of_blocks(0, i).first(44);
        return std::vector<int64_t>(blocks.begin(), blocks.end());
      };
      found += common(row(flat), row(tree));
    }
    EXPECT_GT(static_cast<double>(found) / static_cast<double>(44 * tokens), least)
        << "beam " << beam;
  }
}

}  // namespace
}  // namespace tessera
