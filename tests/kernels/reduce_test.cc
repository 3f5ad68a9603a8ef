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

double sum(Stream& stream, ConstTensorView x) {
  const Tensor total(DType::kF64, {1});
  add_sum(stream, {.total = total, .x = x});
  stream.synchronize();
  return total.as<double>()[0];
}

double sum_of_squares(Stream& stream, ConstTensorView x) {
  const Tensor total(DType::kF64, {1});
  add_sum_of_squares(stream, {.total = total, .x = x});
  stream.synchronize();
  return total.as<double>()[0];
}

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

TEST(Reduce, AddsToWhatIsThere) {
  Stream stream{support::device()};
  const Tensor x = support::filled(DType::kF32, {5}, 3);
  const Tensor total(DType::kF64, {1});
  total.as<double>()[0] = 0.1;
  add_sum(stream, {.total = total, .x = x});
  add_sum_of_squares(stream, {.total = total, .x = x});
  stream.synchronize();
  EXPECT_EQ(total.as<double>()[0], 0.1 + 15 + 45);
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

TEST(Reduce, OnlyChecksOnThePlanDeviceAndSaysWhatIsWrong) {
  Stream stream(Device{DeviceKind::kPlan});
  const TensorView total = support::plan_view(DType::kF64, {1});
  add_sum(stream, {.total = total, .x = support::plan_view(DType::kF32, {8})});
  EXPECT_EQ(count_non_finite(stream, support::plan_view(DType::kBF16, {8})), 0);
  support::expect_error(
      [&] { add_sum(stream, {.total = total, .x = support::plan_view(DType::kI32, {8})}); },
      "add_sum: x is i32 [8], expected f32 or bf16");
  const TensorView x = support::plan_view(DType::kF32, {8});
  support::expect_error([&] { add_sum_of_squares(stream, {.total = x, .x = x}); },
                        "add_sum_of_squares: total is f32 [8], expected f64 one number = [1]");
}

}  // namespace
}  // namespace tessera
