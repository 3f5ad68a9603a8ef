#include "kernels/elementwise.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/reference/activation.h"
#include "tests/reference/complex_step.h"
#include "tests/support/compare.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using support::copy_of;
using support::plan_view;
using support::random_tensor;
using support::Tensor;
using support::to_doubles;

TEST(Elementwise, FillsEveryDtype) {
  Stream stream{support::device(), 2};
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kI32}) {
    const Tensor x(dtype, {3, 7000});
    fill(stream, {.x = x, .value = -2});
    EXPECT_EQ(to_doubles(x), std::vector<double>(21000, -2)) << name_of(dtype);
  }
}

TEST(Elementwise, CastsBothWaysAndCopies) {
  Stream stream{support::device(), 2};
  const Tensor x = random_tensor(DType::kF32, {3, 6001}, 1);
  const Tensor half(DType::kBF16, {6001, 3});
  cast(stream, {.y = half, .x = x});
  for (size_t i = 0; i < 18003; ++i) {
    ASSERT_EQ(half.as<BF16>()[i].bits, from_float<BF16>(x.as<float>()[i]).bits) << i;
  }
  const Tensor back(DType::kF32, {3, 6001});
  cast(stream, {.y = back, .x = half});
  EXPECT_EQ(to_doubles(back), to_doubles(half));
  const Tensor same(DType::kBF16, {6001, 3});
  cast(stream, {.y = same, .x = half});
  support::expect_same_bits(same, half, "copy");
}

TEST(Elementwise, AddsInFloatAndInPlace) {
  Stream stream{support::device()};
  for (const DType dtype : support::dtypes()) {
    const Tensor a = random_tensor(dtype, {5, 13}, 2);
    const Tensor b = random_tensor(dtype, {5, 13}, 3);
    std::vector<double> sums;
    for (size_t i = 0; i < 65; ++i) sums.push_back(to_doubles(a)[i] + to_doubles(b)[i]);
    const Tensor expected = support::from_doubles(dtype, {5, 13}, sums);
    const Tensor y(dtype, {5, 13});
    add(stream, {.y = y, .a = a, .b = b});
    support::expect_same_bits(y, expected, "y");
    const Tensor over_b = copy_of(b);
    add(stream, {.y = over_b, .a = a, .b = over_b});
    support::expect_same_bits(over_b, expected, "y over b");
    add(stream, {.y = a, .a = a, .b = b});
    support::expect_same_bits(a, expected, "y over a");
  }
}

TEST(Elementwise, AccumulatesInFloat) {
  Stream stream{support::device(), 2};
  for (const DType dtype : support::dtypes()) {
    const Tensor y = random_tensor(DType::kF32, {5, 2003}, 2, 100);
    const Tensor x = random_tensor(dtype, {5, 2003}, 3);
    std::vector<double> sums;
    const std::vector<double> before = to_doubles(y);
    const std::vector<double> added = to_doubles(x);
    for (size_t i = 0; i < before.size(); ++i) sums.push_back(before[i] + added[i]);
    accumulate(stream, {.y = y, .x = x});
    support::expect_same_bits(y, support::from_doubles(DType::kF32, {5, 2003}, sums), "y");
  }
}

TEST(Elementwise, SigmoidGateMatchesTheReferenceAndItsGradient) {
  Stream stream{support::device()};
  for (const DType dtype : support::dtypes()) {
    SCOPED_TRACE(name_of(dtype));
    const Shape shape{3, 21};
    const Tensor x = random_tensor(dtype, shape, 4);
    const Tensor g = random_tensor(dtype, shape, 5, 3);
    const Tensor dy = random_tensor(dtype, shape, 6);
    const Tensor y(dtype, shape);
    sigmoid_gate_forward(stream, {.y = y, .x = x, .g = g});
    support::expect_close(y, reference::sigmoid_gate(to_doubles(x), to_doubles(g)),
                          support::tolerance(dtype), "y");
    const auto dx_expected = reference::complex_step_gradient(to_doubles(x), [&](const auto& at) {
      return reference::weighted_sum(
          to_doubles(dy),
          reference::sigmoid_gate(at, reference::as<reference::Complex>(to_doubles(g))));
    });
    const auto dg_expected = reference::complex_step_gradient(to_doubles(g), [&](const auto& at) {
      return reference::weighted_sum(
          to_doubles(dy),
          reference::sigmoid_gate(reference::as<reference::Complex>(to_doubles(x)), at));
    });
    const Tensor dg(dtype, shape);
    const Tensor dx(dtype, shape);
    sigmoid_gate_backward(stream, {.dx = dx, .dg = dg, .dy = dy, .x = x, .g = g});
    support::expect_close(dx, dx_expected, support::tolerance(dtype), "dx");
    support::expect_close(dg, dg_expected, support::tolerance(dtype), "dg");
    sigmoid_gate_backward(stream, {.dx = dy, .dg = dg, .dy = dy, .x = x, .g = g});
    support::expect_same_bits(dy, dx, "dx over dy");
    support::expect_close(dg, dg_expected, support::tolerance(dtype), "dg with dx over dy");
    sigmoid_gate_forward(stream, {.y = x, .x = x, .g = g});
    support::expect_same_bits(x, y, "y over x");
  }
}

TEST(Elementwise, GivesTheSameBitsOnAnyNumberOfThreads) {
  const Shape shape{17, 4001};
  const Tensor x = random_tensor(DType::kBF16, shape, 7);
  const Tensor g = random_tensor(DType::kBF16, shape, 8);
  support::expect_same_on_any_threads([&](Stream& stream) {
    Tensor y(DType::kBF16, shape);
    Tensor dx(DType::kBF16, shape);
    Tensor dg(DType::kBF16, shape);
    Tensor wide(DType::kF32, shape);
    sigmoid_gate_forward(stream, {.y = y, .x = x, .g = g});
    sigmoid_gate_backward(stream, {.dx = dx, .dg = dg, .dy = y, .x = x, .g = g});
    add(stream, {.y = y, .a = y, .b = dx});
    cast(stream, {.y = wide, .x = y});
    return support::tensors(std::move(y), std::move(dx), std::move(dg), std::move(wide));
  });
}

TEST(Elementwise, SaysWhatIsWrong) {
  Stream stream(Device{DeviceKind::kPlan});
  const TensorView x = plan_view(DType::kF32, {4, 8});
  const TensorView ints = plan_view(DType::kI64, {4, 8});
  const TensorView other = plan_view(DType::kBF16, {4, 9});
  support::expect_error([&] { fill(stream, {.x = ints, .value = 0}); },
                        "fill: x is i64, expected f32, bf16 or i32");
  support::expect_error([&] { cast(stream, {.y = other, .x = x}); },
                        "cast: y is [4, 9], expected as many elements as x, [4, 8]");
  support::expect_error([&] { cast(stream, {.y = ints, .x = x}); },
                        "cast: y is i64 [4, 8], expected f32 or bf16");
  support::expect_error([&] { add(stream, {.y = x, .a = x, .b = other}); },
                        "add: b is bf16 [4, 9], expected f32 the shape of y = [4, 8]");
  support::expect_error([&] { accumulate(stream, {.y = other, .x = x}); },
                        "accumulate: y is bf16 [4, 9], expected f32 the shape of x = [4, 8]");
  support::expect_error([&] { accumulate(stream, {.y = x, .x = ints}); },
                        "accumulate: x is i64 [4, 8], expected f32 or bf16");
  support::expect_error(
      [&] { sigmoid_gate_forward(stream, {.y = x, .x = x, .g = other}); },
      "sigmoid_gate_forward: g is bf16 [4, 9], expected f32 [tokens, dim] = [4, 8]");
  support::expect_error(
      [&] { sigmoid_gate_backward(stream, {.dx = x, .dg = other, .dy = x, .x = x, .g = x}); },
      "sigmoid_gate_backward: dg is bf16 [4, 9], expected f32 [tokens, dim] = [4, 8]");
}

}  // namespace
}  // namespace tessera
