#include "kernels/block_matmul.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/reference/matmul.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"
#include "tests/support/tolerance.h"

namespace tessera::cpu {
namespace {

using support::random_tensor;
using support::Tensor;
using support::to_doubles;

/// The block [2, 2 + m) x [3, 3 + n) of a c that is larger by 5 rows and columns.
struct Case {
  Tensor a, b, c;
  BlockMatmul block;
};

Case make_case(DType dtype, DType c_dtype, int64_t m, int64_t n, int64_t k, bool transpose_a,
               bool transpose_b, bool accumulate) {
  Case made{random_tensor(dtype, transpose_a ? Shape{k, m} : Shape{m, k}, 1),
            random_tensor(dtype, transpose_b ? Shape{n, k} : Shape{k, n}, 2),
            random_tensor(c_dtype, {m + 5, n + 5}, 3),
            {}};
  made.block = {
      .c = static_cast<char*>(made.c.view().data()) + (2 * (n + 5) + 3) * size_of(c_dtype),
      .a = made.a.view().data(),
      .b = made.b.view().data(),
      .m = m,
      .n = n,
      .k = k,
      .c_stride = n + 5,
      .a_stride = made.a.shape()[1],
      .b_stride = made.b.shape()[1],
      .c_dtype = c_dtype,
      .dtype = dtype,
      .transpose_a = transpose_a,
      .transpose_b = transpose_b,
      .accumulate = accumulate};
  return made;
}

std::vector<double> expected_of(const Case& test) {
  const BlockMatmul& a = test.block;
  const auto product = reference::matmul(to_doubles(test.a), to_doubles(test.b), a.m, a.n, a.k,
                                         a.transpose_a, a.transpose_b);
  std::vector<double> expected = to_doubles(test.c);
  for (int64_t i = 0; i < a.m; ++i) {
    for (int64_t j = 0; j < a.n; ++j) {
      double& c = expected[static_cast<size_t>((i + 2) * a.c_stride + j + 3)];
      c = (a.accumulate ? c : 0) + product[static_cast<size_t>(i * a.n + j)];
    }
  }
  return expected;
}

TEST(BlockMatmul, WritesItsBlockOnly) {
  for (const DType dtype : support::dtypes()) {
    for (const DType c_dtype : support::dtypes()) {
      for (const int flags : {0, 1, 2, 3, 4, 5, 6, 7}) {
        const Case test = make_case(dtype, c_dtype, 37, 51, 33, (flags & 1) != 0, (flags & 2) != 0,
                                    (flags & 4) != 0);
        const auto expected = expected_of(test);
        block_matmul(test.block);
        support::expect_close(test.c, expected, support::tolerance(c_dtype),
                              concat(name_of(dtype), " to ", name_of(c_dtype), ", ", flags));
      }
    }
  }
}

// What processors without bf16 instructions run, in sums longer than its scratch.
TEST(BlockMatmul, InF32AgreesWithFloat64) {
  for (const DType dtype : support::dtypes()) {
    for (const DType c_dtype : support::dtypes()) {
      for (const int flags : {0, 1, 2, 3, 4, 5, 6, 7}) {
        const Case test = make_case(dtype, c_dtype, 5, 7, 2053, (flags & 1) != 0, (flags & 2) != 0,
                                    (flags & 4) != 0);
        const auto expected = expected_of(test);
        block_matmul_in_f32(test.block);
        support::expect_close(test.c, expected, support::tolerance(c_dtype),
                              concat(name_of(dtype), " to ", name_of(c_dtype), ", ", flags));
      }
    }
  }
}

// More shapes than are kept compiled: the memo is emptied on the way.
TEST(BlockMatmul, ForgetsOldShapesWithoutHarm) {
  const Case test = make_case(DType::kF32, DType::kF32, 40, 40, 3, false, false, false);
  for (int64_t shape = 0; shape < 1100; ++shape) {
    BlockMatmul block = test.block;
    block.m = 1 + shape % 40;
    block.n = 1 + shape / 40;
    block_matmul(block);
  }
  const auto expected = expected_of(test);
  block_matmul(test.block);
  support::expect_close(test.c, expected, support::tolerance(DType::kF32), "after 1100 shapes");
}

TEST(BlockMatmul, RunsOnManyThreadsAtOnce) {
  const Case test = make_case(DType::kBF16, DType::kBF16, 33, 35, 37, false, true, false);
  const auto expected = expected_of(test);
  block_matmul(test.block);
  std::vector<Tensor> results;
  for (int i = 0; i < 4; ++i) results.push_back(support::copy_of(test.c));
  std::vector<std::thread> threads;
  for (const Tensor& result : results) {
    threads.emplace_back([&] {
      BlockMatmul block = test.block;
      block.c = static_cast<char*>(result.view().data()) + (2 * (35 + 5) + 3) * 2;
      for (int repeat = 0; repeat < 10; ++repeat) block_matmul(block);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Tensor& result : results) support::expect_same_bits(result, test.c, "thread");
  support::expect_close(test.c, expected, support::tolerance(DType::kBF16), "value");
}

}  // namespace
}  // namespace tessera::cpu
