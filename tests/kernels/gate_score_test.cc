#include "kernels/gate_score.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <limits>
#include <vector>

#include "kernels/gate_score_lanes.h"
#include "tests/reference/gate.h"

namespace tessera {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(GateScore, ExpIsAccurate) {
  for (float x = -86; x <= 0; x += 0.0137f) {
    const double exact = std::exp(static_cast<double>(x));
    EXPECT_NEAR(gate_exp(x) / exact, 1, 2e-7) << x;
  }
  EXPECT_EQ(gate_exp(0.0f), 1.0f);
  EXPECT_EQ(gate_exp(-1000.0f), gate_exp(-86.0f));
  EXPECT_EQ(gate_exp(-kInfinity), gate_exp(-86.0f));
  EXPECT_TRUE(std::isnan(gate_exp(kNan)));
  // Whatever the other bits of a NaN are: processors differ in them.
  for (const uint32_t bits : {0x7FC00000u, 0x7FFFFFFFu, 0xFFC00000u}) {
    EXPECT_TRUE(std::isnan(gate_log(std::bit_cast<float>(bits))));
    const std::array<float, 3> products{1.0f, std::bit_cast<float>(bits), 2.0f};
    EXPECT_TRUE(std::isnan(gate_log_sum(products.data(), 3)));
  }
}

TEST(GateScore, LogIsAccurate) {
  for (float x = 1e-30f; x < 1e30f; x *= 1.0137f) {
    const double exact = std::log(static_cast<double>(x));
    EXPECT_NEAR(gate_log(x), exact, 2e-7 * std::max(1.0, std::abs(exact))) << x;
  }
  EXPECT_EQ(gate_log(1.0f), 0.0f);
}

TEST(GateScore, SixteenAtOnceHaveTheSameBits) {
  const support::Tensor values = support::random_tensor(DType::kF32, {4, 16}, 1, 5);
  F32x16 x[4];
  for (int64_t a = 0; a < 4; ++a) x[a] = load(values.as<float>().data() + a * 16);
  const F32x16 lse = gate_log_sum(x, 4);
  const F32x16 exp = gate_exp(x[0] - 20.0f);
  for (int lane = 0; lane < kLanes; ++lane) {
    const float column[4] = {x[0][lane], x[1][lane], x[2][lane], x[3][lane]};
    EXPECT_EQ(lse[lane], gate_log_sum(column, 4));
    EXPECT_EQ(exp[lane], gate_exp(column[0] - 20.0f));
  }
}

TEST(GateScore, IsTheDefinition) {
  for (const int64_t gate_keys : {1, 2, 4}) {
    for (const int64_t gate_dim : {1, 6, 64}) {
      const support::Tensor qt = support::random_tensor(DType::kF32, {gate_dim}, 1, 2);
      const support::Tensor kt = support::random_tensor(DType::kF32, {gate_keys, gate_dim}, 2, 2);
      const double exact = reference::gate_score(support::to_doubles(qt), support::to_doubles(kt));
      EXPECT_NEAR(gate_score(qt.as<float>().data(), kt.as<float>().data(), gate_dim, gate_keys),
                  exact, 3e-6 * std::max(1.0, std::abs(exact)))
          << gate_keys << " gate keys, " << gate_dim << " dimensions";
    }
  }
}

TEST(GateScore, IsSummedInAscendingOrderWithOneRoundingEach) {
  // 2^24 + 1 is not a float, so 1 is lost when it comes after 2^24 and kept when before -2^24.
  const std::vector<float> kt{16777216.0f, 1.0f, -16777216.0f, 1.0f};
  const std::vector<float> qt{1, 1, 1, 1};
  EXPECT_EQ(gate_score(qt.data(), kt.data(), 4, 1), 0.5f);
  // (1 + 2^-12)^2 - 1 - 2^-11 is 2^-24 only if the product was not rounded.
  const std::vector<float> a{1.0f, 1 + 0x1p-12f};
  const std::vector<float> b{-1 - 0x1p-11f, 1 + 0x1p-12f};
  EXPECT_EQ(gate_product(a.data(), b.data(), 2), std::fma(0x1p-24f, gate_scale(2), 0.0f));
}

TEST(GateScore, NeverIsMinusZero) {
  const float tiny = std::numeric_limits<float>::denorm_min();
  const float one = 1;
  EXPECT_FALSE(std::signbit(gate_score(&one, std::vector<float>{-0.0f}.data(), 1, 1)));
  const std::vector<float> qt(4, 0.25f);
  const std::vector<float> kt{-tiny, 0, 0, 0};
  EXPECT_FALSE(std::signbit(gate_score(qt.data(), kt.data(), 4, 1)));
}

TEST(GateScore, KeysOrderScores) {
  const std::vector<float> ascending{kNan, -kInfinity, -2, -1e-40f, 0, 1e-40f, 1, 2, kInfinity};
  for (size_t i = 0; i + 1 < ascending.size(); ++i) {
    EXPECT_LT(score_key(ascending[i]), score_key(ascending[i + 1])) << ascending[i];
  }
  EXPECT_EQ(score_key(-kNan), score_key(kNan));
  for (size_t i = 1; i < ascending.size(); ++i) {
    EXPECT_EQ(score_of_key(score_key(ascending[i])), ascending[i]);
  }
  EXPECT_TRUE(std::isnan(score_of_key(score_key(kNan))));
}

}  // namespace
}  // namespace tessera
