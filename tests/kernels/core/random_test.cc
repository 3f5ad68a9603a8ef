#include "kernels/core/random.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

namespace tessera {
namespace {

using Words = std::array<uint32_t, 4>;

// The known answers that the authors publish with Random123 (kat_vectors, philox4x32 10).
TEST(Philox, GivesThePublishedAnswers) {
  EXPECT_EQ(philox(0, 0, 0), (Words{0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8}));
  const uint64_t ones = std::numeric_limits<uint64_t>::max();
  EXPECT_EQ(philox(ones, ones, ones), (Words{0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD}));
  EXPECT_EQ(philox(0x299F31D0A4093822, 0x0370734413198A2E, 0x85A308D3243F6A88),
            (Words{0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1}));
}

TEST(Uniform, NeverReachesItsEnds) {
  EXPECT_EQ(uniform(0), 0x1p-33);
  EXPECT_EQ(uniform(0xFFFFFFFF), 1 - 0x1p-33);
  EXPECT_EQ(uniform(0x80000000), 0.5 + 0x1p-33);
}

TEST(Normal, HasTheMomentsOfTheNormalDistribution) {
  constexpr int kSamples = 200000;
  double mean = 0;
  double square = 0;
  double cube = 0;
  double fourth = 0;
  for (uint64_t i = 0; i < kSamples; ++i) {
    const Words words = philox(7, 0, i);
    const double x = normal(words[0], words[1]);
    ASSERT_TRUE(std::isfinite(x));
    mean += x / kSamples;
    square += x * x / kSamples;
    cube += x * x * x / kSamples;
    fourth += x * x * x * x / kSamples;
  }
  // Five standard errors: sqrt(1, 2, 15 and 96 / samples).
  EXPECT_NEAR(mean, 0, 5 * std::sqrt(1.0 / kSamples));
  EXPECT_NEAR(square, 1, 5 * std::sqrt(2.0 / kSamples));
  EXPECT_NEAR(cube, 0, 5 * std::sqrt(15.0 / kSamples));
  EXPECT_NEAR(fourth, 3, 5 * std::sqrt(96.0 / kSamples));
}

TEST(HashName, IsFnv1a) {
  EXPECT_EQ(hash_name(""), 0xCBF29CE484222325);
  EXPECT_EQ(hash_name("a"), 0xAF63DC4C8601EC8C);
  EXPECT_EQ(hash_name("foobar"), 0x85944171F73967E8);
}

}  // namespace
}  // namespace tessera
