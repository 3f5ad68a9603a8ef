#include "kernels/rms_norm.h"

#include <gtest/gtest.h>

#include "tests/reference/complex_step.h"
#include "tests/reference/rms_norm.h"
#include "tests/support/compare.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using reference::Complex;
using support::plan_view;
using support::random_tensor;
using support::Tensor;
using support::to_doubles;

constexpr float kEpsilon = 1e-5f;

struct Forward {
  Tensor y;
  Tensor rstd;
  Tensor h;
};

Forward forward(Stream& stream, const Tensor& x, const Tensor& weight, const Tensor& residual) {
  Forward out{Tensor(x.dtype(), x.shape()), Tensor(DType::kF32, {x.shape()[0]}),
              Tensor(x.dtype(), x.shape())};
  rms_norm_forward(stream, {.y = out.y,
                            .rstd = out.rstd,
                            .x = x,
                            .weight = weight,
                            .epsilon = kEpsilon,
                            .residual = residual,
                            .h = out.h});
  return out;
}

TEST(RmsNorm, ForwardMatchesTheReference) {
  Stream stream{support::device(), 2};
  for (const DType dtype : support::dtypes()) {
    // The long ones are several packs per lane of a GPU, or more than there is room for.
    for (const int64_t dim : {1, 16, 37, 256, 1032, 4104, 8200}) {
      SCOPED_TRACE(concat(name_of(dtype), " dim ", dim));
      const Tensor x = random_tensor(dtype, {9, dim}, 1, 3);
      const Tensor weight = random_tensor(dtype, {dim}, 2);
      const Tensor residual = random_tensor(dtype, {9, dim}, 3);
      const Forward out = forward(stream, x, weight, residual);
      std::vector<double> sum = to_doubles(x);
      const std::vector<double> added = to_doubles(residual);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += added[i];
      support::expect_close(out.h, sum, support::tolerance(dtype), "h");
      const auto y = reference::rms_norm(to_doubles(out.h), to_doubles(weight), kEpsilon);
      support::expect_close(out.y, y, support::tolerance(dtype), "y");
    }
  }
}

TEST(RmsNorm, ForwardWithoutResidualMayOverwriteItsInput) {
  Stream stream{support::device()};
  for (const DType dtype : support::dtypes()) {
    const Tensor x = random_tensor(dtype, {5, 40}, 4);
    const Tensor weight = random_tensor(dtype, {40}, 5);
    const Tensor rstd(DType::kF32, {5});
    const auto expected = reference::rms_norm(to_doubles(x), to_doubles(weight), kEpsilon);
    rms_norm_forward(stream, {.y = x, .rstd = rstd, .x = x, .weight = weight, .epsilon = kEpsilon});
    support::expect_close(x, expected, support::tolerance(dtype), "y");
  }
}

TEST(RmsNorm, SumMayOverwriteTheResidual) {
  Stream stream{support::device()};
  const Tensor x = random_tensor(DType::kBF16, {5, 40}, 6);
  const Tensor weight = random_tensor(DType::kBF16, {40}, 7);
  const Tensor residual = random_tensor(DType::kBF16, {5, 40}, 8);
  const Forward apart = forward(stream, x, weight, residual);
  const Tensor rstd(DType::kF32, {5});
  // y in place of x and h in place of the residual.
  rms_norm_forward(stream, {.y = x,
                            .rstd = rstd,
                            .x = x,
                            .weight = weight,
                            .epsilon = kEpsilon,
                            .residual = residual,
                            .h = residual});
  support::expect_same_bits(residual, apart.h, "h");
  support::expect_same_bits(x, apart.y, "y");
  support::expect_same_bits(rstd, apart.rstd, "rstd");
}

TEST(RmsNorm, BackwardIsTheGradientOfForward) {
  Stream stream{support::device(), 2};
  for (const DType dtype : support::dtypes()) {
    SCOPED_TRACE(name_of(dtype));
    const Shape shape{4, 19};
    const Tensor h = random_tensor(dtype, shape, 10);
    const Tensor weight = random_tensor(dtype, {19}, 11);
    const Tensor dy = random_tensor(dtype, shape, 12);
    const Tensor dresidual = random_tensor(dtype, shape, 13);
    const Tensor rstd(DType::kF32, {4});
    const Tensor y(dtype, shape);
    rms_norm_forward(stream, {.y = y, .rstd = rstd, .x = h, .weight = weight, .epsilon = kEpsilon});
    const Tensor dh(dtype, shape);
    const Tensor dweight = support::filled(DType::kF32, {19}, 0.5);
    rms_norm_backward(stream, {.dh = dh,
                               .dweight = dweight,
                               .dy = dy,
                               .h = h,
                               .weight = weight,
                               .rstd = rstd,
                               .dresidual = dresidual});

    const auto loss = [&](const std::vector<Complex>& at_h, const std::vector<Complex>& at_weight) {
      return reference::weighted_sum(to_doubles(dy),
                                     reference::rms_norm(at_h, at_weight, kEpsilon)) +
             reference::weighted_sum(to_doubles(dresidual), at_h);
    };
    const auto constant_h = reference::as<Complex>(to_doubles(h));
    const auto constant_weight = reference::as<Complex>(to_doubles(weight));
    const auto gradient_h = reference::complex_step_gradient(
        to_doubles(h), [&](const auto& at) { return loss(at, constant_weight); });
    support::expect_close(dh, gradient_h, support::tolerance(dtype), "dh");
    auto gradient_weight = reference::complex_step_gradient(
        to_doubles(weight), [&](const auto& at) { return loss(constant_h, at); });
    for (double& g : gradient_weight) g += 0.5;  // added to what was there
    support::expect_close(dweight, gradient_weight, support::tolerance(DType::kF32), "dweight");
  }
}

TEST(RmsNorm, BackwardMayOverwriteItsInputs) {
  Stream stream{support::device()};
  const Shape shape{6, 33};
  const Tensor h = random_tensor(DType::kF32, shape, 14);
  const Tensor weight = random_tensor(DType::kF32, {33}, 15);
  const Tensor rstd = support::filled(DType::kF32, {6}, 0.75);
  const auto run = [&](const Tensor& dh, const Tensor& dy, const Tensor& dresidual) {
    const Tensor dweight(DType::kF32, {33});
    rms_norm_backward(stream, {.dh = dh,
                               .dweight = dweight,
                               .dy = dy,
                               .h = h,
                               .weight = weight,
                               .rstd = rstd,
                               .dresidual = dresidual});
  };
  const Tensor dy = random_tensor(DType::kF32, shape, 16);
  const Tensor dresidual = random_tensor(DType::kF32, shape, 17);
  const Tensor apart(DType::kF32, shape);
  run(apart, dy, dresidual);
  const Tensor over_dy = support::copy_of(dy);
  run(over_dy, over_dy, dresidual);
  support::expect_same_bits(over_dy, apart, "dh over dy");
  const Tensor over_dresidual = support::copy_of(dresidual);
  run(over_dresidual, dy, over_dresidual);
  support::expect_same_bits(over_dresidual, apart, "dh over dresidual");
}

TEST(RmsNorm, GivesTheSameBitsOnAnyNumberOfThreads) {
  const Shape shape{203, 768};
  const Tensor x = random_tensor(DType::kBF16, shape, 18);
  const Tensor weight = random_tensor(DType::kBF16, {768}, 19);
  const Tensor dy = random_tensor(DType::kBF16, shape, 20);
  support::expect_same_on_any_threads([&](Stream& stream) {
    Forward out = forward(stream, x, weight, dy);
    Tensor dh(DType::kBF16, shape);
    Tensor dweight(DType::kF32, {768});
    rms_norm_backward(
        stream,
        {.dh = dh, .dweight = dweight, .dy = dy, .h = out.h, .weight = weight, .rstd = out.rstd});
    return support::tensors(std::move(out.y), std::move(out.rstd), std::move(dh),
                            std::move(dweight));
  });
}

TEST(RmsNorm, SaysWhatIsWrong) {
  Stream stream(Device{DeviceKind::kPlan});
  const TensorView x = plan_view(DType::kF32, {4, 8});
  const TensorView rstd = plan_view(DType::kF32, {4});
  const TensorView weight = plan_view(DType::kF32, {8});
  rms_norm_forward(stream, {.y = x, .rstd = rstd, .x = x, .weight = weight, .epsilon = kEpsilon});
  support::expect_error(
      [&] {
        rms_norm_forward(stream, {.y = x,
                                  .rstd = rstd,
                                  .x = x,
                                  .weight = plan_view(DType::kF32, {16}),
                                  .epsilon = kEpsilon});
      },
      "rms_norm_forward: weight is f32 [16], expected f32 [dim] = [8]");
  support::expect_error(
      [&] {
        rms_norm_forward(
            stream,
            {.y = x, .rstd = rstd, .x = x, .weight = weight, .epsilon = kEpsilon, .residual = x});
      },
      "rms_norm_forward: h is missing, but residual is given");
  support::expect_error(
      [&] {
        rms_norm_backward(stream, {.dh = x,
                                   .dweight = plan_view(DType::kBF16, {8}),
                                   .dy = x,
                                   .h = x,
                                   .weight = weight,
                                   .rstd = rstd});
      },
      "rms_norm_backward: dweight is bf16 [8], expected f32 [dim] = [8]");
}

}  // namespace
}  // namespace tessera
