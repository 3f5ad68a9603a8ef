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

TEST(CacheAppend, WritesOneRowOfEachGroupAndNothingElse) {
  const std::array<int32_t, 2> groups{2, 0};
  for (const DType dtype : support::dtypes()) {
    Stream stream{support::device()};
    const Tensor cache = filled(dtype, {2, 4, 3}, 77);
    const Tensor x = support::random_tensor(dtype, {1, 3, 3}, 1);
    cache_append(stream, {.cache = cache, .x = x, .groups = groups, .row = 2});
    const std::vector<double> from = to_doubles(x);
    std::vector<double> expected(2 * 4 * 3, 77);
    for (size_t c = 0; c < groups.size(); ++c) {
      for (size_t e = 0; e < 3; ++e) {
        expected[(c * 4 + 2) * 3 + e] = from[static_cast<size_t>(groups[c]) * 3 + e];
      }
    }
    EXPECT_EQ(to_doubles(cache), expected) << name_of(dtype);
  }
}

TEST(CacheAppend, RefusesWhatDoesNotFit) {
  Stream stream{Device{DeviceKind::kPlan}};
  const auto append = [&](Shape cache, Shape x, std::vector<int32_t> groups, int64_t row,
                          DType dtype = DType::kF32) {
    cache_append(stream, {.cache = plan_view(DType::kF32, cache),
                          .x = plan_view(dtype, x),
                          .groups = groups,
                          .row = row});
  };
  support::expect_error(
      [&] {
        append({2, 4, 3}, {1, 3, 3}, {0}, 0);
      },
      "cache_append: cache is [2, 4, 3], expected [1 groups, rows, d]");
  support::expect_error(
      [&] {
        append({1, 4, 3}, {2, 3, 3}, {0}, 0);
      },
      "cache_append: x is [2, 3, 3], expected [1, kv_heads, 3]");
  support::expect_error(
      [&] {
        append({1, 4, 3}, {1, 3, 3}, {0}, 0, DType::kBF16);
      },
      "cache_append: x is bf16, expected the dtype of cache, f32");
  for (const int64_t row : {-1, 4}) {
    support::expect_error(
        [&] {
          append({1, 4, 3}, {1, 3, 3}, {0}, row);
        },
        concat("cache_append: row is ", row, ", expected 0 to 3"));
  }
  for (const int32_t group : {-1, 3}) {
    support::expect_error(
        [&] {
          append({1, 4, 3}, {1, 3, 3}, {group}, 0);
        },
        concat("cache_append: group ", group, ", expected 0 to 2"));
  }
}

}  // namespace

}  // namespace tessera
