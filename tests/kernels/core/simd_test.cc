#include "kernels/core/simd.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <numeric>
#include <vector>

namespace tessera {
namespace {

TEST(Simd, LoadsAndStoresAnyAlignmentAndDtype) {
  std::array<float, 24> x{};
  std::iota(x.begin(), x.end(), -3.0f);
  std::array<float, 24> y{};
  store(y.data() + 1, load(x.data() + 3) * 2.0f);
  std::array<BF16, 24> half{};
  store(half.data() + 5, load(x.data() + 3));
  for (size_t i = 0; i < 16; ++i) {
    EXPECT_EQ(y[i + 1], 2 * x[i + 3]);
    EXPECT_EQ(to_float(half[i + 5]), x[i + 3]);
    EXPECT_EQ(load(half.data() + 5)[i], x[i + 3]);
  }
  EXPECT_EQ(y[0], 0.0f);
  EXPECT_EQ(y[17], 0.0f);
}

TEST(Simd, PartsTouchNothingElse) {
  std::vector<float> x{1, 2, 3, 4, 5};
  std::vector<BF16> half(5);
  for (int64_t count = 0; count <= 5; ++count) {
    const F32x16 part = load_first(x.data(), count);
    for (int lane = 0; lane < kLanes; ++lane) {
      EXPECT_EQ(part[lane], lane < count ? x[static_cast<size_t>(lane)] : 0.0f);
    }
    std::vector<float> y(5, -1.0f);
    store_first(y.data(), broadcast(7), count);
    store_first(half.data(), broadcast(7), count);
    for (int64_t i = 0; i < 5; ++i) {
      EXPECT_EQ(y[static_cast<size_t>(i)], i < count ? 7.0f : -1.0f);
      EXPECT_EQ(to_float(half[static_cast<size_t>(i)]), i < count ? 7.0f : 0.0f);
    }
  }
}

TEST(Simd, RoundsLikeTheScalar) {
  // Every exponent with mantissas around the ties, both signs, infinities and NaNs.
  for (uint32_t top = 0; top < 0x10000; top += 1) {
    std::array<float, 16> x{};
    for (uint32_t i = 0; i < 16; ++i) {
      const std::array<uint32_t, 4> low{0, 0x7FFF, 0x8000, 0x8001};
      x[i] = std::bit_cast<float>((top << 16) | low[i % 4]);
    }
    std::array<BF16, 16> y{};
    store(y.data(), load(x.data()));
    for (size_t i = 0; i < 4; ++i) {
      const bool zeroed = std::abs(x[i]) < 0x1p-126f && to_float(y[i]) == 0;
      ASSERT_TRUE(zeroed || y[i].bits == from_float<BF16>(x[i]).bits) << top;
    }
  }
}

TEST(Simd, LargerAndSmallerTakeTheSecondForNan) {
  const float nan = std::nanf("");
  EXPECT_EQ(larger(2.0f, 3.0f), 3.0f);
  EXPECT_EQ(smaller(2.0f, 3.0f), 2.0f);
  EXPECT_EQ(larger(nan, 3.0f), 3.0f);
  EXPECT_TRUE(std::isnan(smaller(3.0f, nan)));
  EXPECT_EQ(larger(broadcast(2), broadcast(3))[5], 3.0f);
  EXPECT_EQ(smaller(broadcast(2), broadcast(3))[5], 2.0f);
  EXPECT_EQ(smaller(broadcast(nan), broadcast(3))[5], 3.0f);
  EXPECT_TRUE(std::isnan(larger(broadcast(3), broadcast(nan))[5]));
}

TEST(Simd, Reduces) {
  std::array<float, 16> x{};
  std::iota(x.begin(), x.end(), 1.0f);
  EXPECT_EQ(sum(load(x.data())), 136.0f);
  for (size_t i = 0; i < 16; ++i) {
    std::array<float, 16> one = {};
    for (float& e : one) e = -4;
    one[i] = -3;
    EXPECT_EQ(sum(load(one.data())), -63.0f);
    EXPECT_EQ(largest(load(one.data())), -3.0f);
  }
}

}  // namespace
}  // namespace tessera
