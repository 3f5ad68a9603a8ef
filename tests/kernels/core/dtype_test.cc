#include "kernels/core/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "kernels/core/random.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

TEST(DType, SizesAndNamesAreThoseOfTheTypes) {
  EXPECT_EQ(size_of(kDTypeOf<float>), 4);
  EXPECT_EQ(size_of(kDTypeOf<BF16>), 2);
  EXPECT_EQ(size_of(kDTypeOf<double>), 8);
  EXPECT_EQ(size_of(kDTypeOf<int32_t>), 4);
  EXPECT_EQ(size_of(kDTypeOf<int64_t>), 8);
  EXPECT_EQ(size_of(kDTypeOf<uint16_t>), 2);
  EXPECT_EQ(size_of(kDTypeOf<uint8_t>), 1);
  EXPECT_STREQ(name_of(DType::kBF16), "bf16");
  EXPECT_STREQ(name_of(DType::kI64), "i64");
}

/// The bf16 next to x among its two neighbours, by distance in double; the even one in a tie.
float nearest_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const float below = std::bit_cast<float>(bits & 0xFFFF0000);
  const float above = std::bit_cast<float>((bits & 0xFFFF0000) + 0x10000);
  // Beyond the largest finite value, infinity stands where the next one would be.
  const double up = std::isinf(above) ? std::copysign(std::ldexp(1.0, 128), x) : double{above};
  const double to_below = std::abs(double{x} - below);
  const double to_above = std::abs(up - x);
  if (to_below != to_above) return to_below < to_above ? below : above;
  return (bits & 0x10000) == 0 ? below : above;
}

TEST(BF16, RoundsToNearestEven) {
  for (uint64_t i = 0; i < 100000; ++i) {
    uint32_t bits = philox(1, 0, i)[0];
    if (i % 4 == 0) bits = (bits & 0xFFFF0000) | 0x8000;  // a tie
    const float x = std::bit_cast<float>(bits);
    const float found = to_float(from_float<BF16>(x));
    if (std::isnan(x)) {
      EXPECT_TRUE(std::isnan(found)) << std::hex << bits;
    } else {
      EXPECT_EQ(found, nearest_bf16(x)) << std::hex << bits;
    }
  }
}

TEST(BF16, KeepsWhatItCanHold) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float x : {0.0f, -0.0f, 1.0f, -2.5f, infinity, -infinity, 0x1p-133f}) {
    EXPECT_EQ(std::bit_cast<uint32_t>(to_float(from_float<BF16>(x))), std::bit_cast<uint32_t>(x));
  }
  // A NaN whose upper half looks like infinity must not become one.
  EXPECT_TRUE(std::isnan(to_float(from_float<BF16>(std::bit_cast<float>(0x7F800001)))));
  EXPECT_TRUE(std::isnan(to_float(from_float<BF16>(std::bit_cast<float>(0xFFFFFFFF)))));
}

TEST(WithFloatType, CallsWithTheTypeOfTheDtype) {
  const auto size = []<class T>() { return sizeof(T); };
  EXPECT_EQ(with_float_type(DType::kF32, size), 4u);
  EXPECT_EQ(with_float_type(DType::kBF16, size), 2u);
  support::expect_error([&] { with_float_type(DType::kI32, size); },
                        "expected f32 or bf16, got i32");
}

}  // namespace
}  // namespace tessera
