#include "kernels/softplus.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/reference/complex_step.h"
#include "tests/support/compare.h"
#include "tests/support/tolerance.h"

namespace tessera {

namespace {

using support::filled;
using support::random_tensor;
using support::Tensor;
using support::to_doubles;

TEST(Softplus, IsTheLogOfOnePlusExpAndItsSlopeIsAddedTo) {
  Stream stream{support::device()};
  const Tensor x = random_tensor(DType::kF32, {37}, 1, 3);
  const Tensor dy = random_tensor(DType::kF32, {37}, 2);
  const Tensor y = filled(DType::kF32, {37}, 77);
  const Tensor dx = filled(DType::kF32, {37}, 1);
  softplus_forward(stream, {.y = y, .x = x});
  softplus_backward(stream, {.dx = dx, .dy = dy, .x = x});
  std::vector<double> expected;
  for (const double v : to_doubles(x)) expected.push_back(std::log1p(std::exp(v)));
  support::expect_close(y, expected, support::tolerance(DType::kF32), "y");
  const std::vector<double> weights = to_doubles(dy);
  std::vector<double> gradient = reference::complex_step_gradient(
      to_doubles(x), [&](const std::vector<reference::Complex>& at) {
        std::vector<reference::Complex> value;
        for (const auto& v : at) value.push_back(std::log(1.0 + std::exp(v)));
        return reference::weighted_sum(weights, value);
      });
  for (double& g : gradient) g += 1;
  support::expect_close(dx, gradient, support::tolerance(DType::kF32), "dx");
}

TEST(Softplus, NeitherOverflowsNorLosesSmallValues) {
  Stream stream{support::device()};
  const std::vector<double> at{-200, -60, -30, 30, 100, 1000, 3e38};
  const Tensor x = support::from_doubles(DType::kF32, {7}, at);
  const Tensor y = filled(DType::kF32, {7}, 77);
  const Tensor dx(DType::kF32, {7});
  softplus_forward(stream, {.y = y, .x = x});
  softplus_backward(stream, {.dx = dx, .dy = filled(DType::kF32, {7}, 1), .x = x});
  for (size_t i = 0; i < at.size(); ++i) {
    const double exact = at[i] > 50 ? at[i] : std::log1p(std::exp(at[i]));
    EXPECT_NEAR(y.as<float>()[i], exact, 1e-5 * exact + 1e-37) << "x = " << at[i];
    const double slope = at[i] > 0 ? 1 : std::exp(at[i]);
    EXPECT_NEAR(dx.as<float>()[i], slope, 1e-5 * slope + 1e-37) << "x = " << at[i];
  }
}

TEST(Softplus, RefusesOtherShapes) {
  Stream stream{Device{DeviceKind::kPlan}};
  const auto of = [](int64_t n) { return support::plan_view(DType::kF32, {n}); };
  support::expect_error([&] { softplus_forward(stream, {.y = of(3), .x = of(4)}); },
                        "softplus: y is [3], expected the shape of x, [4]");
  support::expect_error([&] { softplus_backward(stream, {.dx = of(4), .dy = of(3), .x = of(4)}); },
                        "softplus backward: dx is [4] and dy is [3], expected the shape of x, [4]");
}

}  // namespace

}  // namespace tessera
