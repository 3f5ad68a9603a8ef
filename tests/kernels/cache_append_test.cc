#include "kernels/cache_append.h"

#include <gtest/gtest.h>

#include <array>

#include "tests/support/compare.h"
#include "tests/support/tolerance.h"

namespace tessera {

namespace {

using support::filled;
using support::plan_view;
using support::Tensor;
using support::to_doubles;

TEST(CacheAppend, WritesOneRowOfEachGroupAndSequenceAndNothingElse) {
  const std::array<int32_t, 2> groups{2, 0};
  const std::array<int32_t, 3> rows{2, 0, 3};
  const Tensor rows_there = support::from_ints({2, 0, 3});
  for (const DType dtype : support::dtypes()) {
    Stream stream{support::device()};
    const Tensor cache = filled(dtype, {2, 3, 4, 3}, 77);
    const Tensor x = support::random_tensor(dtype, {3, 3, 3}, 1);
    cache_append(stream, {.cache = cache, .x = x, .rows = rows_there, .groups = groups});
    const std::vector<double> from = to_doubles(x);
    std::vector<double> expected(2 * 3 * 4 * 3, 77);
    for (size_t c = 0; c < groups.size(); ++c) {
      for (size_t s = 0; s < rows.size(); ++s) {
        for (size_t e = 0; e < 3; ++e) {
          const size_t to = ((c * 3 + s) * 4 + static_cast<size_t>(rows[s])) * 3 + e;
          expected[to] = from[(s * 3 + static_cast<size_t>(groups[c])) * 3 + e];
        }
      }
    }
    EXPECT_EQ(to_doubles(cache), expected) << name_of(dtype);
  }
}

TEST(CacheAppend, ARowMustLieInTheCache) {
  const std::array<int32_t, 1> groups{0};
  for (const int32_t row : {-1, 4}) {
    Stream stream{support::device()};
    const Tensor cache = filled(DType::kF32, {1, 2, 4, 3}, 77);
    support::expect_kernel_error(
        [&] {
          cache_append(stream, {.cache = cache,
                                .x = Tensor(DType::kF32, {2, 1, 3}),
                                .rows = support::from_ints({0, row}),
                                .groups = groups});
        },
        concat("cache_append: row is ", row, ", expected 0 to 3"),
        "cache_append: a row is outside of the cache");
  }
}

TEST(CacheAppend, RefusesWhatDoesNotFit) {
  Stream stream{Device{DeviceKind::kPlan}};
  const auto append = [&](Shape cache, Shape x, Shape rows, std::vector<int32_t> groups,
                          DType dtype = DType::kF32) {
    cache_append(stream, {.cache = plan_view(DType::kF32, cache),
                          .x = plan_view(dtype, x),
                          .rows = plan_view(DType::kI32, rows),
                          .groups = groups});
  };
  support::expect_error(
      [&] {
        append({2, 2, 4, 3}, {2, 3, 3}, {2}, {0});
      },
      "cache_append: cache is [2, 2, 4, 3], expected [1 groups, sequences, rows, d]");
  support::expect_error(
      [&] {
        append({1, 2, 4, 3}, {1, 3, 3}, {2}, {0});
      },
      "cache_append: x is [1, 3, 3], expected [2, kv_heads, 3]");
  support::expect_error(
      [&] {
        append({1, 1, 4, 3}, {1, 3, 3}, {1}, {0}, DType::kBF16);
      },
      "cache_append: x is bf16, expected the dtype of cache, f32");
  support::expect_error(
      [&] {
        append({1, 2, 4, 3}, {2, 3, 3}, {1}, {0});
      },
      "cache_append: rows is i32 [1], expected i32 [sequences] = [2]");
  for (const int32_t group : {-1, 3}) {
    support::expect_error(
        [&] {
          append({1, 1, 4, 3}, {1, 3, 3}, {1}, {group});
        },
        concat("cache_append: group ", group, ", expected 0 to 2"));
  }
}

}  // namespace

}  // namespace tessera
