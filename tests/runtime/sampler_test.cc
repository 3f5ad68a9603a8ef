#include "runtime/generate/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/support/compare.h"

namespace tessera {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kNever = -std::numeric_limits<float>::infinity();

/// How often each token is drawn.
std::vector<double> shares(const std::vector<float>& logits, const SamplerOptions& options) {
  constexpr int kDraws = 20'000;
  std::vector<double> shares(logits.size(), 0);
  for (uint64_t draw = 0; draw < kDraws; ++draw) {
    shares[static_cast<size_t>(sample(logits, options, draw))] += 1.0 / kDraws;
  }
  return shares;
}

TEST(Sampler, DrawsAsOftenAsTheModelSays) {
  const std::vector<float> logits{1, 3, -2, 2.5};
  for (const double temperature : {0.5, 1.0, 3.0}) {
    const auto found = shares(logits, {.temperature = temperature});
    double all = 0;
    for (const float logit : logits) all += std::exp(logit / temperature);
    for (size_t i = 0; i < logits.size(); ++i) {
      // Five standard deviations.
      const double p = std::exp(logits[i] / temperature) / all;
      EXPECT_NEAR(found[i], p, 5 * std::sqrt(p * (1 - p) / 20'000)) << temperature << " " << i;
    }
  }
}

TEST(Sampler, TopPLeavesTheLeastLikelyOut) {
  // 0.5, 0.25, 0.15, 0.1
  const std::vector<float> logits{std::log(0.25f), std::log(0.1f), std::log(0.5f), std::log(0.15f)};
  const auto found = shares(logits, {.top_p = 0.7});
  EXPECT_NEAR(found[2], 2.0 / 3, 0.02);
  EXPECT_NEAR(found[0], 1.0 / 3, 0.02);
  EXPECT_EQ(found[1] + found[3], 0);
  const auto one = shares(logits, {.top_p = 1e-9});
  EXPECT_NEAR(one[2], 1, 1e-9);
}

TEST(Sampler, NoTemperatureIsTheMostLikelyAndOfEqualOnesTheFirst) {
  EXPECT_EQ(sample(std::vector<float>{1, 4, 4, 2}, {.temperature = 0}, 3), 1);
  EXPECT_EQ(sample(std::vector<float>{7}, {.temperature = 1}, 3), 0);
  // Of equal ones at the edge of top_p the lower tokens stay.
  const auto found = shares({0, 0, 0, 0}, {.top_p = 0.5});
  EXPECT_NEAR(found[0], 0.5, 0.02);
  EXPECT_EQ(found[2] + found[3], 0);
}

TEST(Sampler, WhatIsNoNumberIsNeverDrawn) {
  const auto found = shares({kNaN, 0, kNever, 1}, {.temperature = 1});
  EXPECT_EQ(found[0] + found[2], 0);
  EXPECT_GT(found[1], 0);
  EXPECT_EQ(sample(std::vector<float>{kNaN, 0}, {.temperature = 0}, 0), 1);
}

TEST(Sampler, IsAFunctionOfSeedAndDraw) {
  const std::vector<float> logits(100, 0);
  int same = 0;
  for (uint64_t draw = 0; draw < 50; ++draw) {
    const int32_t token = sample(logits, {.seed = 5}, draw);
    EXPECT_EQ(token, sample(logits, {.seed = 5}, draw));
    same += token == sample(logits, {.seed = 6}, draw);
  }
  EXPECT_LT(same, 10);
  support::expect_error([] { sample({}, {}, 0); }, "sample: there are no logits");
}

}  // namespace
}  // namespace tessera
