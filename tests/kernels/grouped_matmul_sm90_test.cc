#include <gtest/gtest.h>

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
  grouped_matmul(stream, product(expected));
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

}  // namespace
}  // namespace tessera
