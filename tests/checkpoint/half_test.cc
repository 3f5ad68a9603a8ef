#include "checkpoint/half.h"

#include <gtest/gtest.h>

#include <cmath>

namespace tessera {
namespace {

// (-1)^s 2^(e - 15) 1.f, 0.f 2^-14 for e = 0, by the standard, in double.
double by_definition(uint32_t bits) {
  const int exponent = static_cast<int>(bits >> 10 & 31);
  const double fraction = static_cast<double>(bits & 1023) / 1024;
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, -14) : std::ldexp(1 + fraction, exponent - 15);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

TEST(Half, EveryValueIsExact) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float found = half_to_float(static_cast<uint16_t>(bits));
    EXPECT_EQ(std::signbit(found), bits >= 0x8000);
    if ((bits & 0x7FFF) > 0x7C00) {
      EXPECT_TRUE(std::isnan(found)) << bits;
    } else if ((bits & 0x7FFF) == 0x7C00) {
      EXPECT_TRUE(std::isinf(found)) << bits;
    } else {
      EXPECT_EQ(found, by_definition(bits)) << bits;
    }
  }
}

}  // namespace
}  // namespace tessera
