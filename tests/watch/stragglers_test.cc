#include "runtime/watch/stragglers.h"

#include <gtest/gtest.h>

#include <random>

namespace tessera {
namespace {

/// Eight ranks that make ten steps between two reports.
class StragglersTest : public testing::Test {
 protected:
  static constexpr int kRanks = 8;

  std::vector<std::string> report(const std::vector<double>& milliseconds) {
    for (int r = 0; r < kRanks; ++r) {
      FlightState& state = states_[static_cast<size_t>(r)];
      state.steps += 10;
      state.busy += static_cast<int64_t>(1e7 * milliseconds[static_cast<size_t>(r)]);
      stragglers_.observe(r, state);
    }
    return stragglers_.report();
  }

  std::vector<FlightState> states_ = std::vector<FlightState>(kRanks);
  Stragglers stragglers_{kRanks};
};

TEST_F(StragglersTest, NamesASlowRankInTheThirdReportAndOnce) {
  std::vector<double> times(kRanks, 100);
  times[5] = 200;
  EXPECT_TRUE(report(times).empty());
  EXPECT_TRUE(report(times).empty());
  const auto lines = report(times);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_TRUE(lines[0].starts_with("straggler: rank 5 ()")) << lines[0];
  EXPECT_TRUE(report(times).empty());
  times[5] = 100;
  EXPECT_TRUE(report(times).empty());
  times[5] = 200;
  EXPECT_TRUE(report(times).empty());
  EXPECT_TRUE(report(times).empty());
  EXPECT_EQ(report(times).size(), 1u);
}

TEST_F(StragglersTest, IsNotFooledByNoise) {
  std::mt19937 random(1);
  std::normal_distribution<double> noise(100, 15);
  for (int i = 0; i < 1000; ++i) {
    std::vector<double> times;
    for (int r = 0; r < kRanks; ++r) times.push_back(std::max(1.0, noise(random)));
    EXPECT_TRUE(report(times).empty()) << i;
  }
}

TEST_F(StragglersTest, WaitsForStepsOfAllRanks) {
  EXPECT_TRUE(stragglers_.report().empty());
  stragglers_.observe(0, states_[0]);
  EXPECT_TRUE(stragglers_.report().empty());
}

}  // namespace
}  // namespace tessera
