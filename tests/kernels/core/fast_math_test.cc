#include "kernels/core/fast_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

namespace tessera {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Floats from low < 0 to high > 0, `stride` neighbours apart.
std::vector<float> sweep(float low, float high, uint32_t stride) {
  constexpr uint32_t kMinusZero = 0x80000000;
  std::vector<float> values;
  for (uint32_t bits = kMinusZero; bits <= std::bit_cast<uint32_t>(low); bits += stride) {
    values.push_back(std::bit_cast<float>(bits));
  }
  for (uint32_t bits = 0; bits <= std::bit_cast<uint32_t>(high); bits += stride) {
    values.push_back(std::bit_cast<float>(bits));
  }
  return values;
}

template <class F>
double worst_relative_error(const std::vector<float>& at, F approximate, double (*exact)(double)) {
  double worst = 0;
  for (const float x : at) {
    const double wanted = exact(x);
    worst = std::max(worst, std::abs(approximate(x) - wanted) / std::abs(wanted));
  }
  return worst;
}

float lane_exp(float x) {
  return fast_exp(broadcast(x))[7];
}

TEST(FastMath, ExpIsAccurateOverItsWholeRange) {
  const std::vector<float> range = sweep(-86.98f, 88.7228f, 997);
  ASSERT_GT(range.size(), 1'000'000u);
  EXPECT_LT(worst_relative_error(range, fast_exp<float>, std::exp), 2e-7);
  EXPECT_LT(worst_relative_error(range, lane_exp, std::exp), 2e-7);
  EXPECT_EQ(fast_exp(0.0f), 1.0f);
  EXPECT_EQ(fast_exp(-0.0f), 1.0f);
}

TEST(FastMath, ExpHasTheRightLimits) {
  for (const float x :
       {-87.0f, -100.0f, -1e30f, std::numeric_limits<float>::lowest(), -kInfinity}) {
    EXPECT_EQ(fast_exp(x), 0.0f) << x;
    EXPECT_EQ(lane_exp(x), 0.0f) << x;
  }
  for (const float x : {88.7229f, 89.0f, 200.0f, std::numeric_limits<float>::max(), kInfinity}) {
    EXPECT_EQ(fast_exp(x), kInfinity) << x;
    EXPECT_EQ(lane_exp(x), kInfinity) << x;
  }
  for (const uint32_t bits : {0x7FC00000u, 0xFFC00000u, 0x7FFFFFFFu, 0x7F800001u}) {
    EXPECT_TRUE(std::isnan(fast_exp(std::bit_cast<float>(bits)))) << bits;
    EXPECT_TRUE(std::isnan(lane_exp(std::bit_cast<float>(bits)))) << bits;
  }
}

TEST(FastMath, ExpNeverFalls) {
  float before = 0;
  for (float x = -90; x < 89; x += 0.001f) {
    const float here = fast_exp(x);
    EXPECT_GE(here, before) << x;
    before = here;
  }
}

TEST(FastMath, Sigmoid) {
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  EXPECT_LT(worst_relative_error(sweep(-80.0f, 80.0f, 9973), fast_sigmoid<float>, sigmoid), 4e-7);
  EXPECT_EQ(fast_sigmoid(-kInfinity), 0.0f);
  EXPECT_EQ(fast_sigmoid(kInfinity), 1.0f);
  EXPECT_TRUE(std::isnan(fast_sigmoid(std::numeric_limits<float>::quiet_NaN())));
  EXPECT_FLOAT_EQ(fast_sigmoid(broadcast(1.5f))[3], static_cast<float>(sigmoid(1.5)));
}

}  // namespace
}  // namespace tessera
