#include "kernels/core/stochastic_rounding.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace tessera {
namespace {

TEST(StochasticRounding, GoesToANeighbourAndIsRightInTheMean) {
  constexpr int64_t kDraws = 100'000;
  for (const float x : {1.0009f, -1.0009f, 3.7e-39f, 255.31f, -0.0077f}) {
    const float down = std::bit_cast<float>(std::bit_cast<uint32_t>(x) & 0xFFFF0000);
    const float up = std::bit_cast<float>((std::bit_cast<uint32_t>(x) & 0xFFFF0000) + 0x10000);
    const double unit = double{up} - double{down};
    double mean = 0;
    for (int64_t i = 0; i < kDraws; ++i) {
      const BF16 found = round_stochastically(x, RoundingBits(3, 1, i).of(i));
      const float y = to_float(found);
      ASSERT_TRUE(y == down || y == up) << x << " became " << y;
      mean += (double{y} - double{down}) / unit / kDraws;
    }
    // Five standard deviations of a mean of kDraws coins.
    EXPECT_NEAR(mean, (double{x} - double{down}) / unit, 2.5 / std::sqrt(kDraws)) << x;
  }
}

TEST(StochasticRounding, KeepsWhatNeedsNone) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float x : {0.0f, -0.0f, 1.0f, -2.5f, 0x1p-130f, infinity, -infinity}) {
    for (const uint32_t random : {0u, 1u, 0xFFFFu}) {
      EXPECT_EQ(round_stochastically(x, random).bits, from_float<BF16>(x).bits) << x;
    }
  }
  const float nan = std::bit_cast<float>(0x7F800001u);
  EXPECT_TRUE(std::isnan(to_float(round_stochastically(nan, 0))));
}

TEST(StochasticRounding, ElementsStepsAndSeedsHaveBitsOfTheirOwn) {
  for (int64_t index = 0; index < 40; ++index) {
    const auto words = philox(9, 4, static_cast<uint64_t>(index / 8));
    const uint32_t expected = words[static_cast<size_t>(index % 8 / 2)] >> (16 * (index % 2));
    EXPECT_EQ(RoundingBits(9, 4, index).of(index), expected & 0xFFFF) << index;
  }
}

}  // namespace
}  // namespace tessera
