#include "runtime/data/sample_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <vector>

#include "kernels/core/error.h"

namespace tessera {
namespace {

std::vector<int64_t> epoch(const SampleOrder& order, int64_t number) {
  std::vector<int64_t> visited;
  for (int64_t i = 0; i < order.count(); ++i) {
    visited.push_back(order.at(number * order.count() + i));
  }
  return visited;
}

TEST(SampleOrder, EveryEpochVisitsEachSampleOnce) {
  std::vector<int64_t> counts{1000, 1023, 1024, 1025, 65'535, 65'537, 100'000};
  for (int64_t count = 1; count <= 140; ++count) counts.push_back(count);
  for (const int64_t count : counts) {
    const SampleOrder order(count, 7);
    for (const int64_t number : {0, 1, 1'000'000}) {
      std::vector<int64_t> visited = epoch(order, number);
      std::sort(visited.begin(), visited.end());
      std::vector<int64_t> all(static_cast<size_t>(count));
      std::iota(all.begin(), all.end(), 0);
      ASSERT_EQ(visited, all) << count;
    }
  }
}

TEST(SampleOrder, EpochsAndSeedsDiffer) {
  const SampleOrder order(1000, 1);
  EXPECT_NE(epoch(order, 0), epoch(order, 1));
  EXPECT_NE(epoch(order, 0), epoch(SampleOrder(1000, 2), 0));
  EXPECT_EQ(epoch(order, 3), epoch(SampleOrder(1000, 1), 3));
}

TEST(SampleOrder, NeverChanges) {
  // A resumed run continues in this order, so it is part of the checkpoint format.
  // The numbers are from a Python program written for this test.
  EXPECT_EQ(epoch(SampleOrder(10, 1), 0), (std::vector<int64_t>{7, 0, 6, 4, 8, 5, 1, 9, 2, 3}));
  EXPECT_EQ(epoch(SampleOrder(10, 1), 1), (std::vector<int64_t>{5, 9, 7, 0, 8, 4, 3, 1, 6, 2}));
  EXPECT_EQ(SampleOrder(int64_t{1} << 40, 1).at(12345), 907'705'109'306);
}

TEST(SampleOrder, AllPermutationsOfThreeAreAboutEquallyLikely) {
  // 6,000 draws of 6 outcomes; a fair draw's chi-square (5 degrees of freedom) is above 20.5 once
  // in a thousand, and the draw is fixed.
  std::map<std::vector<int64_t>, int> seen;
  const SampleOrder order(3, 42);
  for (int64_t number = 0; number < 6000; ++number) ++seen[epoch(order, number)];
  ASSERT_EQ(seen.size(), 6u);
  double chi_square = 0;
  for (const auto& [permutation, times] : seen) chi_square += std::pow(times - 1000, 2) / 1000.0;
  EXPECT_LT(chi_square, 20.5);
}

TEST(SampleOrder, NeighboursAreNotRelated) {
  const int64_t count = 100'000;
  const SampleOrder order(count, 5);
  double covariance = 0;
  for (int64_t i = 0; i + 1 < count; ++i) {
    const double mean = static_cast<double>(count - 1) / 2;
    covariance +=
        (static_cast<double>(order.at(i)) - mean) * (static_cast<double>(order.at(i + 1)) - mean);
  }
  const double variance = static_cast<double>(count) * static_cast<double>(count) / 12;
  // Four standard deviations of the correlation of independent samples.
  EXPECT_LT(std::abs(covariance / static_cast<double>(count) / variance),
            4 / std::sqrt(static_cast<double>(count)));
}

TEST(SampleOrder, HugeCountsAndIndicesWork) {
  const SampleOrder order(int64_t{1} << 62, 3);
  EXPECT_NE(order.at(0), order.at(1));
  EXPECT_GE(order.at((int64_t{1} << 62) + 5), 0);
  EXPECT_THROW(SampleOrder(0, 1), Error);
  EXPECT_THROW(SampleOrder((int64_t{1} << 62) + 1, 1), Error);
  EXPECT_THROW(order.at(-1), Error);
}

}  // namespace
}  // namespace tessera
