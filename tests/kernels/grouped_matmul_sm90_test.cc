#include <gtest/gtest.h>

#include <cmath>

#include "kernels/core/capability.h"
#include "kernels/grouped_matmul.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"
#include "tests/support/tolerance.h"

// Hopper's grouped product against the one that runs everywhere, which grouped_matmul_test is
// about.

namespace tessera {
namespace {

using support::from_ints;
using support::random_tensor;
using support::Tensor;

bool is_hopper() {
  return gpu::compute_capability(0) == 90;
}

struct Extents {
  int64_t n, k;
};

void check(const std::vector<int32_t>& offsets, const Extents& e, DType c_dtype, bool transpose_b) {
  const auto groups = static_cast<int64_t>(offsets.size()) - 1;
  const int64_t rows = offsets.back() + 3;  // three of nobody
  const Tensor a = random_tensor(DType::kBF16, {rows, e.k}, 1);
  const Tensor b = random_tensor(
      DType::kBF16, transpose_b ? Shape{groups, e.n, e.k} : Shape{groups, e.k, e.n}, 2);
  const Tensor c = random_tensor(c_dtype, {rows, e.n}, 3);
  const Tensor expected = support::copy_of(c);
  const Tensor device_offsets = from_ints(offsets);
  Stream stream(support::device());
  const auto product = [&](const Tensor& to) {
    return GroupedMatmul{
        .c = to, .a = a, .b = b, .offsets = device_offsets, .transpose_b = transpose_b};
  };
  gpu::grouped_matmul_sm80(stream, product(expected));
  gpu::grouped_matmul_sm90(stream, product(c));
  stream.synchronize();
  support::expect_close(
      c, support::to_doubles(expected), support::tolerance(c_dtype),
      concat(name_of(c_dtype), ", n ", e.n, ", k ", e.k, transpose_b ? ", b transposed" : ""));
}

/// Interpreted kernels want small shapes; these are still more tiles than multiprocessors.
bool is_interpreted() {
  return support::kernels_can_throw();
}

void check_weight(const std::vector<int32_t>& offsets, const Extents& e) {
  const auto groups = static_cast<int64_t>(offsets.size()) - 1;
  const int64_t rows = offsets.back() + 3;  // three of nobody
  const Tensor a = random_tensor(DType::kBF16, {rows, e.n}, 1);
  const Tensor b = random_tensor(DType::kBF16, {rows, e.k}, 2);
  const Tensor c = random_tensor(DType::kF32, {groups, e.n, e.k}, 3);
  const Tensor expected = support::copy_of(c);
  const Tensor device_offsets = from_ints(offsets);
  Stream stream(support::device());
  const auto product = [&](const Tensor& to) {
    return GroupedMatmulWeight{.c = to, .a = a, .b = b, .offsets = device_offsets};
  };
  gpu::grouped_matmul_weight_sm80(stream, product(expected));
  gpu::grouped_matmul_weight_sm90(stream, product(c));
  stream.synchronize();
  support::expect_close(c, support::to_doubles(expected), support::tolerance(DType::kF32),
                        concat("weight, n ", e.n, ", k ", e.k));
}

TEST(GroupedMatmulSm90, AgreesWithTheOneForAll) {
  if (!is_hopper()) GTEST_SKIP() << "needs a GPU of compute capability 9.0";
  for (const DType c_dtype : support::dtypes()) {
    for (const bool transpose_b : {true, false}) {
      check({0, 5}, {8, 8}, c_dtype, transpose_b);
      check({0, 0, 1, 34, 34, 167}, {136, 24}, c_dtype, transpose_b);
      if (is_interpreted()) continue;
      for (const Extents& e : {Extents{256, 64}, {600, 200}, {520, 1000}}) {
        check({0, 5}, e, c_dtype, transpose_b);
        check({0, 0, 1, 34, 34, 334, 350, 350}, e, c_dtype, transpose_b);
      }
    }
  }
}

TEST(GroupedMatmulSm90, TakesMoreTilesThanThereAreMultiprocessors) {
  if (!is_hopper()) GTEST_SKIP() << "needs a GPU of compute capability 9.0";
  std::vector<int32_t> offsets{0};
  for (int32_t e = 0; e < 40; ++e) offsets.push_back(offsets.back() + e * 37 % 300);
  const bool small = is_interpreted();
  if (small) offsets = {0, 3, 3, 50, 60, 90};
  for (const bool transpose_b : {true, false}) {
    check(offsets, small ? Extents{264, 328} : Extents{768, 264}, DType::kBF16, transpose_b);
  }
}

TEST(GroupedMatmulSm90, GradientOfWeightsAgreesWithTheOneForAll) {
  if (!is_hopper()) GTEST_SKIP() << "needs a GPU of compute capability 9.0";
  const std::vector<int32_t> several{0, 0, 1, 34, 34, 334, 350, 350};
  for (const Extents& e : {Extents{128, 256}, {8, 8}, {136, 24}, {72, 520}}) {
    check_weight({0, 5}, e);
    check_weight({0, 64, 192}, e);
    check_weight(several, e);
  }
}

// Rows of the next group are in the same copies.
TEST(GroupedMatmulSm90, GradientOfWeightsDoesNotSeeOtherGroups) {
  if (!is_hopper()) GTEST_SKIP() << "needs a GPU of compute capability 9.0";
  const Tensor a = random_tensor(DType::kBF16, {90, 16}, 1);
  const Tensor b = random_tensor(DType::kBF16, {90, 16}, 2);
  for (int64_t i = 70 * 16; i < 90 * 16; ++i) {
    a.view().as<BF16>()[static_cast<size_t>(i)] = from_float<BF16>(std::nanf(""));
    b.view().as<BF16>()[static_cast<size_t>(i)] = from_float<BF16>(std::nanf(""));
  }
  const Tensor c = support::filled(DType::kF32, {2, 16, 16}, 0);
  const Tensor offsets = from_ints({0, 70, 90});
  Stream stream(support::device());
  gpu::grouped_matmul_weight_sm90(stream, {.c = c, .a = a, .b = b, .offsets = offsets});
  stream.synchronize();
  const std::vector<double> sums = support::to_doubles(c);
  for (size_t i = 0; i < 256; ++i) {
    EXPECT_TRUE(std::isfinite(sums[i]));
    EXPECT_TRUE(std::isnan(sums[256 + i]));
  }
}

}  // namespace
}  // namespace tessera
