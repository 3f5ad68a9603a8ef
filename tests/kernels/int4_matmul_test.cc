#include "kernels/int4_matmul.h"

#include <gtest/gtest.h>

#include "tests/kernels/int4_values.h"
#include "tests/reference/matmul.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using support::Int4;
using support::int4_values;
using support::random_tensor;
using support::Tensor;

struct Case {
  std::vector<int32_t> offsets;  ///< of the groups
  int64_t rows;                  ///< of a and c; those behind the last offset stay as they are
  int64_t n;
  int64_t k;
};

/// a of the group's rows times the transpose of its matrix; rows of no group are `before`.
std::vector<double> expected(const Case& c, const std::vector<double>& a,
                             const std::vector<double>& w, std::vector<double> before,
                             bool accumulate) {
  for (size_t e = 0; e + 1 < c.offsets.size(); ++e) {
    const int64_t first = c.offsets[e];
    const int64_t rows = c.offsets[e + 1] - first;
    const auto matrix = w.begin() + static_cast<int64_t>(e) * c.n * c.k;
    const auto product =
        reference::matmul<double>({a.begin() + first * c.k, a.begin() + (first + rows) * c.k},
                                  {matrix, matrix + c.n * c.k}, rows, c.n, c.k, false, true);
    for (int64_t i = 0; i < rows * c.n; ++i) {
      double& to = before[static_cast<size_t>(first * c.n + i)];
      to = (accumulate ? to : 0) + product[static_cast<size_t>(i)];
    }
  }
  return before;
}

void expect_products(const Case& c, DType in, DType out, bool accumulate) {
  const auto groups = std::ssize(c.offsets) - 1;
  const Tensor a = random_tensor(in, {c.rows, c.k}, 1);
  const Int4 w(random_tensor(DType::kF32, {groups, c.n, c.k}, 2, 0.1).view());
  const Tensor found = random_tensor(out, {c.rows, c.n}, 3);
  const bool plain = groups == 1 && c.offsets.back() == c.rows;
  const auto reference = expected(c, support::to_doubles(a), int4_values(w.view()),
                                  support::to_doubles(found), accumulate);
  const Tensor offsets = support::from_ints(c.offsets);
  Stream stream(support::device(), 2);
  int4_matmul(stream, {.c = found,
                       .a = a,
                       .w = w.view(),
                       .offsets = plain ? ConstTensorView{} : offsets.view(),
                       .accumulate = accumulate});
  // On the CPU weights of many rows of bf16 are rounded to bf16, and codes of few have a bias that
  // costs seven bits of a sum in f32.
  const bool rounded = out == DType::kBF16 || c.rows > 8;
  support::expect_close(found, reference,
                        in == DType::kF32 && out == DType::kF32 ? 1e-11
                        : rounded                               ? 1e-5
                                                                : 1e-10,
                        concat(name_of(in), " to ", name_of(out), ", rows ", c.rows, ", n ", c.n,
                               ", k ", c.k, accumulate ? ", added" : ""));
}

std::vector<Case> cases() {
  return {
      {{0, 1}, 1, 40, 128},              // one token; columns that are no multiple of a tile
      {{0, 3}, 3, 17, 64},               // one run, most warps have none
      {{0, 8}, 8, 16, 640},              // more runs than warps
      {{0, 21}, 21, 50, 192},            // more rows than a tile
      {{0, 2, 2, 14, 15}, 17, 33, 192},  // groups of 2, 0, 12 and 1, and rows of none
  };
}

TEST(Int4Matmul, IsTheProductWithTheNumbersThatCodesStandFor) {
  for (const Case& c : cases()) {
    for (const DType in : {DType::kF32, DType::kBF16}) {
      for (const DType out : {DType::kF32, DType::kBF16}) {
        expect_products(c, in, out, false);
        expect_products(c, in, out, true);
      }
    }
  }
}

// What a token gets does not depend on those beside it, as long as they are few.
TEST(Int4Matmul, FewRowsHaveTheBitsOfOne) {
  const Int4 w(random_tensor(DType::kF32, {1, 48, 256}, 2).view());
  for (const DType dtype : support::dtypes()) {
    const Tensor a = random_tensor(dtype, {8, 256}, 1);
    const Tensor all(DType::kF32, {8, 48});
    Stream stream(support::device(), 2);
    int4_matmul(stream, {.c = all, .a = a, .w = w.view()});
    for (int64_t row = 0; row < 8; ++row) {
      const Tensor alone(DType::kF32, {1, 48});
      const Tensor of_row = support::copy_of(a.view().rows(row, 1));
      int4_matmul(stream, {.c = alone, .a = of_row, .w = w.view()});
      EXPECT_EQ(support::to_doubles(all.view().rows(row, 1)), support::to_doubles(alone))
          << name_of(dtype) << " row " << row;
    }
  }
}

TEST(Int4Matmul, AnyNumberOfThreadsGivesTheSameBits) {
  const Int4 w(random_tensor(DType::kF32, {2, 70, 128}, 2).view());
  const Tensor a = random_tensor(DType::kBF16, {20, 128}, 1);
  const Tensor offsets = support::from_ints({0, 3, 20});
  support::expect_same_on_any_threads([&](Stream& stream) {
    Tensor c(DType::kF32, {20, 70});
    int4_matmul(stream, {.c = c, .a = a, .w = w.view(), .offsets = offsets});
    return support::tensors(std::move(c));
  });
}

TEST(Int4Matmul, SaysWhatIsWrong) {
  Stream plan{Device{DeviceKind::kPlan}};
  const auto floats = [](Shape shape) { return support::plan_view(DType::kF32, shape); };
  const Int4Weights w{support::plan_view(DType::kU8, {3, 8, 64}),
                      support::plan_view(DType::kBF16, {3, 8, 2, 2})};
  support::expect_error(
      [&] {
        int4_matmul(plan, {.c = floats({2, 8}), .a = floats({2, 128}), .w = w});
      },
      "int4_matmul: codes is u8 [3, 8, 64], expected u8 [groups, n, k / 2] = [1, 8, 64]");
  support::expect_error(
      [&] {
        int4_matmul(plan, {.c = floats({3, 8}), .a = floats({2, 128}), .w = w});
      },
      "int4_matmul: c is [3, 8], a is [2, 128], expected as many rows");
  support::expect_error(
      [&] {
        int4_matmul(plan, {.c = floats({2, 8}),
                           .a = floats({2, 128}),
                           .w = w,
                           .offsets = support::plan_view(DType::kI32, {3})});
      },
      "int4_matmul: offsets is i32 [3], expected i32 [groups + 1] = [4]");
}

TEST(Int4Matmul, OffsetsMustAscendWithinTheRows) {
  if (support::device().kind == DeviceKind::kGpu) GTEST_SKIP() << "a GPU leaves such groups out";
  const Int4 w(random_tensor(DType::kF32, {2, 4, 64}, 2).view());
  const Tensor a = random_tensor(DType::kF32, {3, 64}, 1);
  const Tensor c(DType::kF32, {3, 4});
  const Tensor offsets = support::from_ints({0, 2, 4});
  Stream stream(support::device());
  support::expect_error(
      [&] { int4_matmul(stream, {.c = c, .a = a, .w = w.view(), .offsets = offsets}); },
      "int4_matmul: offsets have 2, 4, expected ascending numbers up to the 3 rows");
}

}  // namespace
}  // namespace tessera
