#include "kernels/matmul.h"

#include <gtest/gtest.h>

#include "tests/reference/complex_step.h"
#include "tests/reference/matmul.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using reference::Complex;
using support::copy_of;
using support::expect_close;
using support::expect_error;
using support::plan_view;
using support::random_tensor;
using support::Tensor;
using support::to_doubles;

struct Extents {
  int64_t m, n, k;
};

struct Product {
  DType dtype;
  DType c_dtype;
  bool transpose_a;
  bool transpose_b;
  bool accumulate;

  std::string name() const {
    return concat(name_of(dtype), " to ", name_of(c_dtype), transpose_a ? ", a transposed" : "",
                  transpose_b ? ", b transposed" : "", accumulate ? ", added" : "");
  }
};

std::vector<Product> all_products() {
  std::vector<Product> all;
  for (const DType dtype : support::dtypes()) {
    for (const DType c_dtype : support::dtypes()) {
      for (const int flags : {0, 1, 2, 3, 4, 5, 6, 7}) {
        all.push_back({dtype, c_dtype, (flags & 1) != 0, (flags & 2) != 0, (flags & 4) != 0});
      }
    }
  }
  return all;
}

Shape stored(int64_t rows, int64_t columns, bool transposed) {
  return transposed ? Shape{columns, rows} : Shape{rows, columns};
}

/// The kernel against float64, from the same rounded inputs.
void check(const Extents& e, const Product& p, int threads) {
  const Tensor a = random_tensor(p.dtype, stored(e.m, e.k, p.transpose_a), 1);
  const Tensor b = random_tensor(p.dtype, stored(e.k, e.n, p.transpose_b), 2);
  const Tensor c = random_tensor(p.c_dtype, {e.m, e.n}, 3, 10);
  std::vector<double> expected =
      reference::matmul(to_doubles(a), to_doubles(b), e.m, e.n, e.k, p.transpose_a, p.transpose_b);
  const std::vector<double> before = to_doubles(c);
  for (size_t i = 0; i < expected.size(); ++i) expected[i] += p.accumulate ? before[i] : 0;
  Stream stream(support::device(), threads);
  matmul(stream, {.c = c,
                  .a = a,
                  .b = b,
                  .transpose_a = p.transpose_a,
                  .transpose_b = p.transpose_b,
                  .accumulate = p.accumulate});
  expect_close(c, expected, support::tolerance(p.c_dtype),
               concat(e.m, " x ", e.n, " x ", e.k, ", ", p.name()));
}

TEST(Matmul, AgreesWithFloat64) {
  for (const Product& product : all_products()) {
    for (const Extents& extents :
         {Extents{1, 1, 1}, {1, 7, 3}, {5, 1, 2}, {17, 33, 65}, {64, 96, 128}}) {
      check(extents, product, 1);
    }
  }
}

TEST(Matmul, AgreesWithFloat64AcrossTiles) {
  for (const DType dtype : support::dtypes()) {
    check({131, 390, 19}, {dtype, dtype, false, true, false}, 2);
    check({131, 390, 19}, {dtype, dtype, false, false, false}, 2);
    check({390, 257, 23}, {dtype, DType::kF32, true, false, true}, 2);
    check({2050, 1601, 3}, {dtype, DType::kF32, false, true, true}, 2);
  }
  check({3, 5, 2500}, {DType::kF32, DType::kBF16, true, true, true}, 1);
}

TEST(Matmul, EmptySumsAreZeroAndEmptyOutputsAreLeft) {
  Stream stream(support::device());
  for (const DType dtype : support::dtypes()) {
    const Tensor c = random_tensor(dtype, {3, 5}, 1);
    const Tensor before = copy_of(c);
    matmul(stream,
           {.c = c, .a = Tensor(dtype, {3, 0}), .b = Tensor(dtype, {0, 5}), .accumulate = true});
    support::expect_same_bits(c, before, "adding an empty sum");
    matmul(stream, {.c = c, .a = Tensor(dtype, {3, 0}), .b = Tensor(dtype, {0, 5})});
    for (const double value : to_doubles(c)) EXPECT_EQ(value, 0);
    matmul(stream,
           {.c = Tensor(dtype, {0, 5}), .a = Tensor(dtype, {0, 2}), .b = Tensor(dtype, {2, 5})});
    matmul(stream,
           {.c = Tensor(dtype, {3, 0}), .a = Tensor(dtype, {3, 2}), .b = Tensor(dtype, {2, 0})});
  }
}

TEST(Matmul, OverwritesEvenNan) {
  Stream stream(support::device());
  const Tensor c = support::filled(DType::kF32, {2, 2}, std::nan(""));
  const Tensor one = support::filled(DType::kF32, {2, 2}, 1);
  matmul(stream, {.c = c, .a = one, .b = one});
  EXPECT_EQ(to_doubles(c), std::vector<double>(4, 2.0));
}

TEST(Matmul, RoundsABf16SumOnce) {
  // 256 + 1 + 1: each addition alone rounds back to 256 in bf16, their sum does not.
  Stream stream(support::device());
  const Tensor c = support::filled(DType::kBF16, {1, 1}, 256);
  const Tensor one = support::filled(DType::kBF16, {1, 2}, 1);
  matmul(stream, {.c = c, .a = one, .b = one, .transpose_b = true, .accumulate = true});
  EXPECT_EQ(to_doubles(c), std::vector<double>{258});
}

// y = x W^T with the two gradients as the header states them, through loss = sum dy * y.
TEST(Matmul, ThreeProductsOfALinearLayerAreItsGradients) {
  constexpr int64_t kTokens = 5;
  constexpr int64_t kIn = 7;
  constexpr int64_t kOut = 3;
  const Tensor x = random_tensor(DType::kF32, {kTokens, kIn}, 1);
  const Tensor w = random_tensor(DType::kF32, {kOut, kIn}, 2);
  const Tensor dy = random_tensor(DType::kF32, {kTokens, kOut}, 3);
  const Tensor dx(DType::kF32, {kTokens, kIn});
  const Tensor dw(DType::kF32, {kOut, kIn});
  Stream stream(support::device());
  matmul(stream, {.c = dx, .a = dy, .b = w});
  matmul(stream, {.c = dw, .a = dy, .b = x, .transpose_a = true, .accumulate = true});

  const auto loss = [&](const std::vector<Complex>& cx, const std::vector<Complex>& cw) {
    return reference::weighted_sum<Complex>(
        to_doubles(dy), reference::matmul(cx, cw, kTokens, kOut, kIn, false, true));
  };
  const auto x_complex = reference::as<Complex>(to_doubles(x));
  const auto w_complex = reference::as<Complex>(to_doubles(w));
  expect_close(dx,
               reference::complex_step_gradient(
                   to_doubles(x), [&](const auto& at) { return loss(at, w_complex); }),
               support::tolerance(DType::kF32), "dx");
  expect_close(dw,
               reference::complex_step_gradient(
                   to_doubles(w), [&](const auto& at) { return loss(x_complex, at); }),
               support::tolerance(DType::kF32), "dw");
}

TEST(Matmul, IsTheSameOnAnyNumberOfThreads) {
  for (const DType dtype : support::dtypes()) {
    const Tensor a = random_tensor(dtype, {300, 70}, 1);
    const Tensor b = random_tensor(dtype, {70, 900}, 2);
    support::expect_same_on_any_threads([&](Stream& stream) {
      Tensor c(dtype, {300, 900});
      Tensor dw(DType::kF32, {70, 70});
      matmul(stream, {.c = c, .a = a, .b = b});
      matmul(stream, {.c = dw, .a = a, .b = a, .transpose_a = true, .accumulate = true});
      return support::tensors(std::move(c), std::move(dw));
    });
  }
}

TEST(Matmul, RowsDoNotDependOnWhatIsInOtherRows) {
  // NaN rows are how unused capacity looks: they must not leak.
  Stream stream(support::device());
  const Tensor a = random_tensor(DType::kBF16, {33, 65}, 1);
  const Tensor b = random_tensor(DType::kBF16, {65, 49}, 2);
  const Tensor clean(DType::kBF16, {33, 49});
  const Tensor spoiled(DType::kBF16, {33, 49});
  matmul(stream, {.c = clean, .a = a, .b = b});
  for (BF16& value : a.view().rows(20, 1).as<BF16>()) value = from_float<BF16>(std::nanf(""));
  matmul(stream, {.c = spoiled, .a = a, .b = b});
  for (const int64_t row : {0, 19, 21, 32}) {
    support::expect_same_bits(spoiled.view().rows(row, 1), clean.view().rows(row, 1), "row");
  }
}

TEST(Matmul, SaysWhatIsWrong) {
  Stream stream(Device{DeviceKind::kPlan});
  const auto f32 = [](Shape shape) { return plan_view(DType::kF32, shape); };
  const auto bf16 = [](Shape shape) { return plan_view(DType::kBF16, shape); };
  matmul(stream, {.c = f32({4, 3}), .a = f32({4, 8}), .b = f32({8, 3})});
  expect_error(
      [&] {
        matmul(stream, {.c = f32({4, 3}), .a = f32({2, 4, 8}), .b = f32({8, 3})});
      },
      "matmul: a is [2, 4, 8], b is [8, 3], c is [4, 3], expected three matrices");
  expect_error(
      [&] {
        matmul(stream, {.c = f32({4, 3}), .a = f32({4, 8}), .b = f32({3, 8})});
      },
      "matmul: b is [3, 8], a is [4, 8], expected b [k, n] = [8, 8]");
  expect_error(
      [&] {
        matmul(stream, {.c = f32({4, 3}),
                        .a = f32({8, 4}),
                        .b = f32({3, 9}),
                        .transpose_a = true,
                        .transpose_b = true});
      },
      "matmul: b is [3, 9], a is [8, 4] transposed, expected b [n, k] = [3, 8]");
  expect_error(
      [&] {
        matmul(stream, {.c = f32({3, 4}), .a = f32({4, 8}), .b = f32({8, 3})});
      },
      "matmul: c is [3, 4], expected [m, n] = [4, 3]");
  expect_error(
      [&] {
        matmul(stream, {.c = f32({4, 3}), .a = f32({4, 8}), .b = bf16({8, 3})});
      },
      "matmul: b is bf16, expected the dtype of a, f32");
  expect_error(
      [&] {
        const TensorView a = plan_view(DType::kI32, {4, 8});
        matmul(stream, {.c = f32({4, 3}), .a = a, .b = a});
      },
      "matmul: a is i32, expected f32 or bf16");
  expect_error(
      [&] {
        const TensorView c = plan_view(DType::kI32, {4, 3});
        matmul(stream, {.c = c, .a = f32({4, 8}), .b = f32({8, 3})});
      },
      "matmul: c is i32, expected f32 or bf16");
}

}  // namespace
}  // namespace tessera
