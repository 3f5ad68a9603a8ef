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

/// Puts a token at each of `places` and `rows`.
void expect_rows(const std::vector<int32_t>& places, const std::vector<int32_t>& rows) {
  const std::array<int32_t, 2> groups{2, 0};
  const auto tokens = std::ssize(rows);
  for (const DType dtype : support::dtypes()) {
    Stream stream{support::device()};
    const Tensor cache = filled(dtype, {2, 3, 4, 3}, 77);
    const Tensor x = support::random_tensor(dtype, {tokens, 3, 3}, 1);
    const Tensor places_there = support::from_ints(places);
    const Tensor rows_there = support::from_ints(rows);
    cache_append(
        stream,
        {.cache = cache, .x = x, .places = places_there, .rows = rows_there, .groups = groups});
    const std::vector<double> from = to_doubles(x);
    std::vector<double> expected(2 * 3 * 4 * 3, 77);
    for (size_t c = 0; c < groups.size(); ++c) {
      for (size_t t = 0; t < rows.size(); ++t) {
        for (size_t e = 0; rows[t] >= 0 && e < 3; ++e) {
          const size_t place = c * 3 + static_cast<size_t>(places[t]);
          expected[(place * 4 + static_cast<size_t>(rows[t])) * 3 + e] =
              from[(t * 3 + static_cast<size_t>(groups[c])) * 3 + e];
        }
      }
    }
    EXPECT_EQ(to_doubles(cache), expected) << name_of(dtype);
  }
}

TEST(CacheAppend, WritesOneRowOfEachGroupAndSequenceAndNothingElse) {
  expect_rows({0, 1, 2}, {2, 0, 3});
}

TEST(CacheAppend, WritesManyTokensOfOneSequenceAndLeavesSomeOut) {
  expect_rows({1, 1, 1, 1, 1}, {3, -1, 0, -1, 1});
}

TEST(CacheAppend, APlaceAndARowMustLieInTheCache) {
  const std::array<int32_t, 1> groups{0};
  const auto expect = [&](int32_t place, int32_t row, const std::string& sentence) {
    Stream stream{support::device()};
    const Tensor cache = filled(DType::kF32, {1, 2, 4, 3}, 77);
    support::expect_kernel_error(
        [&] {
          cache_append(stream, {.cache = cache,
                                .x = Tensor(DType::kF32, {2, 1, 3}),
                                .places = support::from_ints({1, place}),
                                .rows = support::from_ints({0, row}),
                                .groups = groups});
        },
        sentence, "cache_append: a place or a row is outside of the cache");
  };
  expect(0, -2, "cache_append: row is -2, expected -1 to 3");
  expect(0, 4, "cache_append: row is 4, expected -1 to 3");
  expect(-1, 1, "cache_append: place is -1, expected 0 to 1");
  expect(2, 1, "cache_append: place is 2, expected 0 to 1");
}

TEST(CacheAppend, RefusesWhatDoesNotFit) {
  Stream stream{Device{DeviceKind::kPlan}};
  const auto append = [&](Shape cache, Shape x, Shape places, Shape rows,
                          std::vector<int32_t> groups, DType dtype = DType::kF32) {
    cache_append(stream, {.cache = plan_view(DType::kF32, cache),
                          .x = plan_view(dtype, x),
                          .places = plan_view(DType::kI32, places),
                          .rows = plan_view(DType::kI32, rows),
                          .groups = groups});
  };
  support::expect_error(
      [&] {
        append({2, 2, 4, 3}, {2, 3, 3}, {2}, {2}, {0});
      },
      "cache_append: cache is [2, 2, 4, 3], expected [1 groups, sequences, rows, d]");
  support::expect_error(
      [&] {
        append({1, 2, 4, 3}, {2, 3, 4}, {2}, {2}, {0});
      },
      "cache_append: x is [2, 3, 4], expected [tokens, kv_heads, 3]");
  support::expect_error(
      [&] {
        append({1, 1, 4, 3}, {1, 3, 3}, {1}, {1}, {0}, DType::kBF16);
      },
      "cache_append: x is bf16, expected the dtype of cache, f32");
  support::expect_error(
      [&] {
        append({1, 2, 4, 3}, {2, 3, 3}, {2}, {1}, {0});
      },
      "cache_append: rows is i32 [1], expected i32 [tokens] = [2]");
  support::expect_error(
      [&] {
        append({1, 2, 4, 3}, {2, 3, 3}, {3}, {2}, {0});
      },
      "cache_append: places is i32 [3], expected i32 [tokens] = [2]");
  for (const int32_t group : {-1, 3}) {
    support::expect_error(
        [&] {
          append({1, 1, 4, 3}, {1, 3, 3}, {1}, {1}, {group});
        },
        concat("cache_append: group ", group, ", expected 0 to 2"));
  }
}

}  // namespace

}  // namespace tessera
