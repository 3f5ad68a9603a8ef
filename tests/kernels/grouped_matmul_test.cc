#include "kernels/grouped_matmul.h"

#include <gtest/gtest.h>

#include "tests/bench/grouped_on_streams.h"
#include "tests/reference/complex_step.h"
#include "tests/reference/matmul.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using reference::Complex;
using support::expect_close;
using support::expect_error;
using support::from_ints;
using support::plan_view;
using support::random_tensor;
using support::Tensor;
using support::to_doubles;

template <class T>
std::vector<T> part(const std::vector<T>& x, int64_t first, int64_t count) {
  return {x.begin() + first, x.begin() + first + count};
}

/// c[rows of e] = a[rows of e] op(b[e]).
template <class T>
std::vector<T> grouped(const std::vector<T>& a, const std::vector<T>& b,
                       const std::vector<int32_t>& offsets, int64_t n, int64_t k,
                       bool transpose_b) {
  std::vector<T> c;
  for (size_t e = 0; e + 1 < offsets.size(); ++e) {
    const int64_t rows = offsets[e + 1] - offsets[e];
    const auto product = reference::matmul(part(a, offsets[e] * k, rows * k),
                                           part(b, static_cast<int64_t>(e) * n * k, n * k), rows, n,
                                           k, false, transpose_b);
    c.insert(c.end(), product.begin(), product.end());
  }
  return c;
}

// Groups with no row first, last and in between; one of several tiles; two rows of nobody.
const std::vector<int32_t> kOffsets{0, 0, 1, 34, 34, 34, 334, 350, 350};
constexpr int64_t kGroups = 8;
constexpr int64_t kRows = 352;

void check(DType dtype, DType c_dtype, bool transpose_b, int64_t n, int64_t k) {
  const Tensor a = random_tensor(dtype, {kRows, k}, 1);
  const Tensor b =
      random_tensor(dtype, transpose_b ? Shape{kGroups, n, k} : Shape{kGroups, k, n}, 2);
  const Tensor c = random_tensor(c_dtype, {kRows, n}, 3);
  auto expected = grouped(to_doubles(a), to_doubles(b), kOffsets, n, k, transpose_b);
  const auto before = to_doubles(c);
  expected.insert(expected.end(), before.begin() + 350 * n, before.end());
  Stream stream(support::device(), 2);
  grouped_matmul(
      stream, {.c = c, .a = a, .b = b, .offsets = from_ints(kOffsets), .transpose_b = transpose_b});
  expect_close(c, expected, support::tolerance(c_dtype),
               concat(name_of(dtype), " to ", name_of(c_dtype), ", ", n, " x ", k, transpose_b));
  EXPECT_EQ(part(to_doubles(c), 350 * n, 2 * n), part(before, 350 * n, 2 * n)) << "rows of nobody";
}

TEST(GroupedMatmul, AgreesWithFloat64) {
  for (const bool transpose_b : {false, true}) {
    for (const DType c_dtype : support::dtypes()) {
      for (const DType dtype : support::dtypes()) check(dtype, c_dtype, transpose_b, 70, 19);
      // Rows of whole pieces of 16 bytes, for tensor cores; neither extent a multiple of a tile.
      check(DType::kBF16, c_dtype, transpose_b, 136, 24);
    }
    check(DType::kBF16, DType::kF32, transpose_b, 8, 200);
  }
}

// More groups than a warp has lanes, and more tiles than are side by side on a GPU.
TEST(GroupedMatmul, AgreesWithFloat64WithManyGroups) {
  constexpr int64_t kMany = 70;
  constexpr int64_t kN = 136;
  constexpr int64_t kK = 8;
  std::vector<int32_t> offsets{0};
  for (int32_t e = 0; e < kMany; ++e) offsets.push_back(offsets.back() + e % 3);
  const int64_t rows = offsets.back();
  for (const DType dtype : support::dtypes()) {
    const Tensor a = random_tensor(dtype, {rows, kK}, 1);
    const Tensor b = random_tensor(dtype, {kMany, kN, kK}, 2);
    const Tensor c(dtype, {rows, kN});
    Stream stream(support::device(), 2);
    grouped_matmul(stream,
                   {.c = c, .a = a, .b = b, .offsets = from_ints(offsets), .transpose_b = true});
    expect_close(c, grouped(to_doubles(a), to_doubles(b), offsets, kN, kK, true),
                 support::tolerance(dtype), name_of(dtype));
  }
}

TEST(GroupedMatmul, AgreesWithFloat64AcrossColumnTiles) {
  const Tensor a = random_tensor(DType::kBF16, {9, 5}, 1);
  const Tensor b = random_tensor(DType::kBF16, {2, 1600, 5}, 2);
  const Tensor c(DType::kBF16, {9, 1600});
  const std::vector<int32_t> offsets{0, 4, 9};
  Stream stream(support::device(), 2);
  grouped_matmul(stream,
                 {.c = c, .a = a, .b = b, .offsets = from_ints(offsets), .transpose_b = true});
  expect_close(c, grouped(to_doubles(a), to_doubles(b), offsets, 1600, 5, true),
               support::tolerance(DType::kBF16), "c");
}

// y = x W_e^T per group, with both gradients, through loss = sum dy * y.
TEST(GroupedMatmul, GradientsAreThoseOfTheProducts) {
  constexpr int64_t kN = 3;
  constexpr int64_t kK = 4;
  const std::vector<int32_t> offsets{0, 2, 2, 7};
  const Tensor x = random_tensor(DType::kF32, {7, kK}, 1);
  const Tensor w = random_tensor(DType::kF32, {3, kN, kK}, 2);
  const Tensor dy = random_tensor(DType::kF32, {7, kN}, 3);
  const Tensor dx(DType::kF32, {7, kK});
  const Tensor dw = support::filled(DType::kF32, {3, kN, kK}, 0.25);
  const Tensor device_offsets = from_ints(offsets);
  Stream stream(support::device());
  grouped_matmul(stream, {.c = dx, .a = dy, .b = w, .offsets = device_offsets});
  grouped_matmul_weight(stream, {.c = dw, .a = dy, .b = x, .offsets = device_offsets});
  const auto loss = [&](const std::vector<Complex>& cx, const std::vector<Complex>& cw) {
    return reference::weighted_sum<Complex>(to_doubles(dy), grouped(cx, cw, offsets, kN, kK, true));
  };
  const auto x_complex = reference::as<Complex>(to_doubles(x));
  const auto w_complex = reference::as<Complex>(to_doubles(w));
  expect_close(dx,
               reference::complex_step_gradient(
                   to_doubles(x), [&](const auto& at) { return loss(at, w_complex); }),
               support::tolerance(DType::kF32), "dx");
  auto gradient = reference::complex_step_gradient(
      to_doubles(w), [&](const auto& at) { return loss(x_complex, at); });
  for (double& value : gradient) value += 0.25;  // added to
  expect_close(dw, gradient, support::tolerance(DType::kF32), "dw");
}

void check_weight(DType dtype, int64_t n, int64_t k, const std::vector<int32_t>& offsets) {
  const int64_t rows = offsets.back() + 2;
  const auto groups = static_cast<int64_t>(offsets.size()) - 1;
  const Tensor a = random_tensor(dtype, {rows, n}, 1);
  const Tensor b = random_tensor(dtype, {rows, k}, 2);
  const Tensor c = random_tensor(DType::kF32, {groups, n, k}, 3);
  auto expected = to_doubles(c);
  for (int64_t e = 0; e < groups; ++e) {
    const int64_t first = offsets[static_cast<size_t>(e)];
    const int64_t count = offsets[static_cast<size_t>(e) + 1] - first;
    const auto product =
        reference::matmul(part(to_doubles(a), first * n, count * n),
                          part(to_doubles(b), first * k, count * k), n, k, count, true, false);
    for (size_t i = 0; i < product.size(); ++i) {
      expected[static_cast<size_t>(e * n * k) + i] += product[i];
    }
  }
  Stream stream(support::device(), 2);
  grouped_matmul_weight(stream, {.c = c, .a = a, .b = b, .offsets = from_ints(offsets)});
  expect_close(c, expected, support::tolerance(DType::kF32),
               concat(name_of(dtype), ", ", n, " x ", k));
}

TEST(GroupedMatmulWeight, AgreesWithFloat64AcrossTiles) {
  for (const DType dtype : support::dtypes()) check_weight(dtype, 300, 801, {0, 7, 21});
  // For tensor cores; more steps of rows than are under way at a time.
  check_weight(DType::kBF16, 136, 152, {0, 0, 1, 34, 234, 234});
}

TEST(GroupedMatmulWeight, AddsExactlyNothingForAGroupWithoutRows) {
  const Tensor c = random_tensor(DType::kF32, {3, 5, 6}, 1);
  const Tensor before = support::copy_of(c);
  // NaN in rows of the neighbours must not reach it.
  const Tensor a = support::filled(DType::kBF16, {4, 5}, std::nan(""));
  const Tensor b = support::filled(DType::kBF16, {4, 6}, 1);
  Stream stream(support::device());
  grouped_matmul_weight(stream, {.c = c, .a = a, .b = b, .offsets = from_ints({0, 2, 2, 4})});
  support::expect_same_bits(c.view().rows(1, 1), before.view().rows(1, 1), "group 1");
}

TEST(GroupedMatmul, IsTheSameOnAnyNumberOfThreads) {
  // Several tiles of columns; the GPU's are small.
  const bool gpu = support::device().kind == DeviceKind::kGpu;
  const int64_t n = gpu ? 136 : 900;
  const int64_t k = gpu ? 40 : 100;
  const Tensor a = random_tensor(DType::kBF16, {kRows, k}, 1);
  const Tensor w = random_tensor(DType::kBF16, {kGroups, n, k}, 2);
  const Tensor offsets = from_ints(kOffsets);
  support::expect_same_on_any_threads([&](Stream& stream) {
    Tensor c(DType::kBF16, {kRows, n});
    Tensor dw(DType::kF32, {kGroups, n, k});
    grouped_matmul(stream, {.c = c, .a = a, .b = w, .offsets = offsets, .transpose_b = true});
    grouped_matmul_weight(stream, {.c = dw, .a = c, .b = a, .offsets = offsets});
    return support::tensors(std::move(c), std::move(dw));
  });
}

TEST(GroupedMatmul, AgreesWithAProductPerGroup) {
  Stream stream(support::device());
  Stream other(support::device());
  Stream* const streams[] = {&stream, &other};
  const Tensor offsets = from_ints(kOffsets);
  for (const DType dtype : support::dtypes()) {
    const Tensor a = random_tensor(dtype, {kRows, 24}, 1);
    const Tensor b = random_tensor(dtype, {kGroups, 24, 16}, 2);
    const Tensor c(dtype, {kRows, 16});
    const Tensor expected(dtype, {kRows, 16});
    grouped_matmul(stream, {.c = c, .a = a, .b = b, .offsets = offsets});
    bench::multiply_groups_on_streams(streams, {.c = expected, .a = a, .b = b, .offsets = offsets},
                                      kOffsets);
    stream.synchronize();
    other.synchronize();
    expect_close(c, to_doubles(expected), support::tolerance(dtype), name_of(dtype));
  }
}

TEST(GroupedMatmul, TakesNoRowsAndNoGroups) {
  Stream stream(support::device());
  grouped_matmul(stream, {.c = Tensor(DType::kF32, {0, 3}),
                          .a = Tensor(DType::kF32, {0, 2}),
                          .b = Tensor(DType::kF32, {2, 2, 3}),
                          .offsets = from_ints({0, 0, 0})});
  grouped_matmul_weight(stream, {.c = Tensor(DType::kF32, {0, 3, 2}),
                                 .a = Tensor(DType::kF32, {0, 3}),
                                 .b = Tensor(DType::kF32, {0, 2}),
                                 .offsets = from_ints({0})});
}

TEST(GroupedMatmul, RefusesOffsetsThatLeaveTheRows) {
  Stream stream(Device{});
  const auto run = [&](const std::vector<int32_t>& offsets) {
    grouped_matmul(stream, {.c = Tensor(DType::kF32, {4, 3}),
                            .a = Tensor(DType::kF32, {4, 2}),
                            .b = Tensor(DType::kF32, {2, 2, 3}),
                            .offsets = from_ints(offsets)});
  };
  expect_error([&] { run({1, 2, 4}); }, "grouped_matmul: offsets start at 1, expected 0");
  expect_error(
      [&] {
        run({0, 3, 2});
      },
      "grouped_matmul: offsets[2] is 2 after 3, expected ascending ones");
  expect_error(
      [&] {
        run({0, 3, 5});
      },
      "grouped_matmul: offsets end at 5, expected at most 4 rows");
}

TEST(GroupedMatmul, SaysWhatIsWrong) {
  Stream stream(Device{DeviceKind::kPlan});
  const auto f32 = [](Shape shape) { return plan_view(DType::kF32, shape); };
  const auto i32 = [](Shape shape) { return plan_view(DType::kI32, shape); };
  grouped_matmul(stream,
                 {.c = f32({6, 3}), .a = f32({6, 2}), .b = f32({4, 2, 3}), .offsets = i32({5})});
  expect_error(
      [&] {
        grouped_matmul(
            stream, {.c = f32({6, 3}), .a = f32({6, 2}), .b = f32({4, 3, 2}), .offsets = i32({5})});
      },
      "grouped_matmul: b is f32 [4, 3, 2], expected f32 [groups, k, n] = [4, 2, 3]");
  expect_error(
      [&] {
        grouped_matmul(
            stream, {.c = f32({5, 3}), .a = f32({6, 2}), .b = f32({4, 2, 3}), .offsets = i32({5})});
      },
      "grouped_matmul: c is [5, 3], a is [6, 2], expected as many rows");
  expect_error(
      [&] {
        grouped_matmul(
            stream, {.c = f32({6, 3}), .a = f32({6, 2}), .b = f32({4, 2, 3}), .offsets = f32({5})});
      },
      "grouped_matmul: offsets is f32 [5], expected i32 [groups + 1] = [5]");
  expect_error(
      [&] {
        grouped_matmul_weight(
            stream, {.c = f32({4, 2, 3}), .a = f32({6, 3}), .b = f32({6, 2}), .offsets = i32({5})});
      },
      "grouped_matmul_weight: c is f32 [4, 2, 3], expected f32 [groups, n, k] = [4, 3, 2]");
  expect_error(
      [&] {
        grouped_matmul_weight(
            stream, {.c = f32({4, 3, 2}), .a = f32({6, 3}), .b = f32({5, 2}), .offsets = i32({5})});
      },
      "grouped_matmul_weight: b is f32 [5, 2], expected f32 [rows, k] = [6, 2]");
}

}  // namespace
}  // namespace tessera
