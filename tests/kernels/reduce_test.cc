#include "kernels/reduce.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/compare.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using support::random_tensor;
using support::Tensor;
using support::to_doubles;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(Reduce, SumsInDouble) {
  Stream stream{support::device(), 2};
  for (const DType dtype : support::dtypes()) {
    for (const int64_t count : {0, 1, 15, 16, 17, 4097, 100'001}) {
      SCOPED_TRACE(concat(name_of(dtype), " count ", count));
      const Tensor x = random_tensor(dtype, {count}, 1);
      double total = 0;
      double squares = 0;
      for (const double value : to_doubles(x)) {
        total += value;
        squares += value * value;
      }
      EXPECT_NEAR(sum(stream, x), total, 1e-9);
      EXPECT_NEAR(sum_of_squares(stream, x), squares, 1e-9 * squares);
      EXPECT_EQ(count_non_finite(stream, x), 0);
    }
  }
}

TEST(Reduce, SmallNumbersSurviveLargeOnes) {
  Stream stream{support::device()};
  const Tensor x = support::filled(DType::kF32, {100'000}, 1);
  x.as<float>()[0] = 1e7f;
  EXPECT_EQ(sum(stream, x), 1e7 + 99'999);
  EXPECT_EQ(sum_of_squares(stream, x), 1e14 + 99'999);
}

TEST(Reduce, CountsAndPropagatesWhatIsNotFinite) {
  Stream stream{support::device(), 2};
  for (const DType dtype : support::dtypes()) {
    const Tensor x = random_tensor(dtype, {3, 9000}, 2);
    with_float_type(dtype, [&]<class T>() {
      x.as<T>()[0] = from_float<T>(kInfinity);
      x.as<T>()[8999] = from_float<T>(-kInfinity);
      x.as<T>()[26999] = from_float<T>(std::nanf(""));
    });
    EXPECT_EQ(count_non_finite(stream, x), 3) << name_of(dtype);
    EXPECT_TRUE(std::isnan(sum(stream, x)));
    EXPECT_FALSE(std::isfinite(sum_of_squares(stream, x)));
    EXPECT_EQ(count_non_finite(stream, support::filled(dtype, {7}, 3e38)), 0);
  }
}

TEST(Reduce, GivesTheSameBitsOnAnyNumberOfThreads) {
  // More than the CPU's 256 smallest chunks; kernels that are interpreted get less.
  const bool on_cpu = support::device().kind == DeviceKind::kCpu;
  const Tensor x = random_tensor(DType::kF32, {on_cpu ? 1'500'007 : 300'007}, 3);
  Stream alone{support::device(), 1};
  for (const int threads : support::thread_counts()) {
    Stream stream{support::device(), threads};
    EXPECT_EQ(sum(stream, x), sum(alone, x)) << threads;
    EXPECT_EQ(sum_of_squares(stream, x), sum_of_squares(alone, x)) << threads;
  }
}

TEST(Reduce, IsZeroOnThePlanDeviceAndSaysWhatIsWrong) {
  Stream stream(Device{DeviceKind::kPlan});
  EXPECT_EQ(sum(stream, support::plan_view(DType::kF32, {8})), 0);
  EXPECT_EQ(sum_of_squares(stream, support::plan_view(DType::kF32, {8})), 0);
  EXPECT_EQ(count_non_finite(stream, support::plan_view(DType::kBF16, {8})), 0);
  support::expect_error([&] { sum(stream, support::plan_view(DType::kI32, {8})); },
                        "sum: x is i32 [8], expected f32 or bf16");
}

}  // namespace
}  // namespace tessera
