#include "runtime/choose/group_shares.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

namespace tessera {
namespace {

double sum(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

TEST(GroupShares, TotalIsMetByOnePriceForAll) {
  const std::vector<double> x{1.5, 0.9, 0.25, -0.5};
  const std::vector<double> shares = with_total(x, 1.5);
  // By hand: at a price of 0.15 the first is 1, the second 0.75, the third 0.1: 1.85; so more.
  EXPECT_NEAR(sum(shares), 1.5, 1e-12);
  EXPECT_NEAR(shares[0], 1, 1e-12);
  EXPECT_NEAR(shares[1], 0.5, 1e-12);
  EXPECT_EQ(shares[2], 0);
  EXPECT_EQ(shares[3], 0);
}

TEST(GroupShares, TotalMayBeAllOrNothing) {
  for (const double total : {0.0, 1e-3, 2.0, 3.999, 4.0}) {
    EXPECT_NEAR(sum(with_total({0.1, 5, -3, 0.1}, total)), total, 1e-12) << total;
  }
  EXPECT_EQ(with_total({2, 2}, 1), (std::vector<double>{0.5, 0.5}));
}

TEST(GroupShares, TotalFallsGeometricallyAndThenStays) {
  EXPECT_DOUBLE_EQ(total_of_step(50, 200, 8, 1), 8 / std::cbrt(8));
  EXPECT_DOUBLE_EQ(total_of_step(75, 200, 8, 2), 4);
  for (const int64_t step : {150, 151, 200}) EXPECT_DOUBLE_EQ(total_of_step(step, 200, 8, 2), 2);
  EXPECT_DOUBLE_EQ(total_of_step(1, 1, 8, 2), 2);
}

TEST(GroupShares, TheFirstStepMovesByTheRateTimesTheSlopesOverTheirSize) {
  LayerShares layer(2);
  EXPECT_EQ(layer.values(), (std::vector<double>{1, 1}));
  // Around their mean the slopes are -3 and 3: of size 3.
  layer.follow(std::vector<double>{-1, 5}, 1, 0.125);
  EXPECT_NEAR(layer.values()[0], 0.625, 1e-12);
  EXPECT_NEAR(layer.values()[1], 0.375, 1e-12);
}

TEST(GroupShares, ScaleAndCommonPartOfSlopesDropOut) {
  LayerShares plain(3);
  LayerShares scaled(3);
  for (int step = 0; step < 20; ++step) {
    const std::vector<double> slopes{std::sin(step), -0.2, std::cos(3 * step)};
    std::vector<double> others;
    for (const double slope : slopes) others.push_back(1e-4 * slope - 7e-3);
    plain.follow(slopes, 2, 0.05);
    scaled.follow(others, 2, 0.05);
    for (size_t c = 0; c < 3; ++c) EXPECT_NEAR(plain.values()[c], scaled.values()[c], 1e-9);
  }
}

TEST(GroupShares, LastsWithoutAnySlope) {
  LayerShares layer(4);
  layer.follow(std::vector<double>(4), 1, 0.05);
  for (const double share : layer.values()) EXPECT_NEAR(share, 0.25, 1e-12);
}

// The loss is a(1 - alpha_0)^2 + ...: what costs most keeps its share, whatever the scale.
TEST(GroupShares, KeepsTheGroupsThatAreNeeded) {
  for (const double scale : {1e-6, 1.0, 1e6}) {
    const std::vector<double> need{0.2, 1, 0.1, 0.9, 0, 0.3};
    LayerShares layer(6);
    constexpr int64_t kSteps = 100;
    for (int64_t step = 1; step <= kSteps; ++step) {
      std::vector<double> slopes;
      for (size_t c = 0; c < need.size(); ++c) {
        slopes.push_back(scale * (-2 * need[c] * (1 - layer.values()[c]) - 0.01 * need[c]));
      }
      layer.follow(slopes, total_of_step(step, kSteps, 6, 2), 0.05);
    }
    const std::vector<double>& shares = layer.values();
    for (const size_t kept : {1, 3}) {
      for (const size_t other : {0, 2, 4, 5}) EXPECT_GT(shares[kept], shares[other] + 0.3);
    }
  }
}

}  // namespace
}  // namespace tessera
