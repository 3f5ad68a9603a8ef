#include "kernels/softplus.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/reference/complex_step.h"
#include "tests/support/compare.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using support::from_doubles;
using support::plan_view;
using support::random_tensor;
using support::Tensor;
using support::to_doubles;

TEST(Softplus, MatchesTheFormulaAndItsGradient) {
  Stream stream{Device{}};
  const Tensor x = random_tensor(DType::kF32, {50}, 1, 4);
  const Tensor dy = random_tensor(DType::kF32, {50}, 2);
  const auto softplus = [](const auto& at) {
    auto y = at;
    for (auto& value : y) value = std::log(1.0 + std::exp(value));
    return y;
  };
  const Tensor y(DType::kF32, {50});
  softplus_forward(stream, {.y = y, .x = x});
  support::expect_close(y, softplus(to_doubles(x)), support::tolerance(DType::kF32), "y");

  const Tensor dx = support::filled(DType::kF32, {50}, 0.25);
  softplus_backward(stream, {.dx = dx, .dy = dy, .x = x});
  auto gradient = reference::complex_step_gradient(to_doubles(x), [&](const auto& at) {
    return reference::weighted_sum(to_doubles(dy), softplus(at));
  });
  for (double& g : gradient) g += 0.25;  // added to what was there
  support::expect_close(dx, gradient, support::tolerance(DType::kF32), "dx");
}

TEST(Softplus, NeitherOverflowsNorLosesSmallValues) {
  Stream stream{Device{}};
  const std::vector<double> at{-1000, -50, 50, 1000};
  const Tensor y(DType::kF32, {4});
  const Tensor x = from_doubles(DType::kF32, {4}, at);
  softplus_forward(stream, {.y = y, .x = x});
  EXPECT_EQ(y.as<float>()[0], 0.0f);
  EXPECT_FLOAT_EQ(y.as<float>()[1], static_cast<float>(std::exp(-50.0)));
  EXPECT_EQ(y.as<float>()[2], 50.0f);
  EXPECT_EQ(y.as<float>()[3], 1000.0f);
  const Tensor dx(DType::kF32, {4});
  softplus_backward(stream, {.dx = dx, .dy = support::filled(DType::kF32, {4}, 1), .x = x});
  EXPECT_EQ(dx.as<float>()[0], 0.0f);
  EXPECT_EQ(dx.as<float>()[3], 1.0f);
}

TEST(Softplus, SaysWhatIsWrong) {
  Stream stream(Device{DeviceKind::kPlan});
  support::expect_error(
      [&] {
        softplus_forward(stream,
                         {.y = plan_view(DType::kF32, {3}), .x = plan_view(DType::kF32, {4})});
      },
      "softplus: y is [3], expected the shape of x, [4]");
}

}  // namespace
}  // namespace tessera
