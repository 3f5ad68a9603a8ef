#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>

#include "kernels/permute_tokens.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"
#include "tests/support/tolerance.h"

// GatherRows of kernels/permute_tokens.h, by rows and by tokens: the second is another kernel of
// the GPU.

namespace tessera {
namespace {

using support::expect_error;
using support::from_ints;
using support::plan_view;
using support::random_tensor;
using support::Tensor;

/// The two say the same of the pairs that are not dropped; rows are in an order that looks random.
struct Pairs {
  std::vector<int32_t> source_of, row_of;
};
Pairs shuffled_pairs(int64_t count, bool dropping) {
  Pairs pairs;
  for (int32_t pair = 0; pair < count; ++pair) {
    if (!dropping || pair % 4 != 1) pairs.source_of.push_back(pair);
  }
  std::mt19937 order(7);
  std::shuffle(pairs.source_of.begin(), pairs.source_of.end(), order);
  pairs.row_of.assign(static_cast<size_t>(count), -1);
  for (size_t row = 0; row < pairs.source_of.size(); ++row) {
    pairs.row_of[static_cast<size_t>(pairs.source_of[row])] = static_cast<int32_t>(row);
  }
  return pairs;
}

/// y by rows and by tokens is x[source_of[r] / k].
void check_both_ways(DType dtype, int64_t k, int64_t dim, bool dropping) {
  constexpr int64_t kTokens = 11;  // more than a block of the GPU has warps
  const Pairs pairs = shuffled_pairs(kTokens * k, dropping);
  const auto rows = static_cast<int64_t>(pairs.source_of.size());
  const Tensor x = random_tensor(dtype, {kTokens, dim}, 1);
  const Tensor source_of = from_ints(pairs.source_of);
  const Tensor row_of = from_ints(pairs.row_of);
  const Tensor by_rows = support::filled(dtype, {rows, dim}, 99);
  const Tensor by_tokens = support::filled(dtype, {rows, dim}, 99);
  Stream stream(support::device());
  gather_rows(stream, {.y = by_rows, .x = x, .source_of = source_of, .slots = k});
  gather_rows(stream, {.y = by_tokens,
                       .x = x,
                       .source_of = source_of,
                       .slots = k,
                       .row_of = row_of.view().reshape({kTokens, k})});
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t token = pairs.source_of[static_cast<size_t>(row)] / k;
    const TensorView expected = x.view().rows(token, 1);
    const std::string what = concat(name_of(dtype), ", k ", k, ", dim ", dim, ", row ", row);
    support::expect_same_bits(by_rows.view().rows(row, 1), expected, what + " by rows");
    support::expect_same_bits(by_tokens.view().rows(row, 1), expected, what + " by tokens");
  }
}

TEST(GatherRows, IsTheSameByRowsAndByTokens) {
  for (const DType dtype : support::dtypes()) {
    for (const int64_t k : {1, 3, 8, 17, 33}) {  // 33: more than a warp has lanes
      for (const bool dropping : {false, true}) check_both_ways(dtype, k, 24, dropping);
      check_both_ways(dtype, k, 19, true);  // no whole packs
    }
    check_both_ways(dtype, 3, 1, true);
    check_both_ways(dtype, 3, 1032, true);  // more than a lane has under way at once
    check_both_ways(dtype, 3, 1031, true);
  }
}

TEST(GatherRows, TakesNoTokensAndTokensThatAreAllDropped) {
  Stream stream(support::device());
  for (const int64_t tokens : {0, 3}) {
    gather_rows(stream, {.y = Tensor(DType::kF32, {0, 8}),
                         .x = Tensor(DType::kF32, {tokens, 8}),
                         .source_of = Tensor(DType::kI32, {0}),
                         .slots = 2,
                         .row_of = support::filled(DType::kI32, {tokens, 2}, -1)});
  }
}

TEST(GatherRows, CopiesTheRowOfEachPairsToken) {
  Stream stream(support::device());
  for (const DType dtype : support::dtypes()) {
    const Tensor x = random_tensor(dtype, {3, 19}, 1);
    const Tensor source_of = from_ints({5, 0, 3, 1});
    const Tensor y(dtype, {4, 19});
    gather_rows(stream, {.y = y, .x = x, .source_of = source_of, .slots = 2});
    for (const auto& [row, token] : {std::pair{0, 2}, {1, 0}, {2, 1}, {3, 0}}) {
      support::expect_same_bits(y.view().rows(row, 1), x.view().rows(token, 1), "row");
    }
  }
}

TEST(GatherRows, CopiesLongRows) {
  Stream stream(support::device());
  for (const DType dtype : support::dtypes()) {
    for (const int64_t dim : {1032, 1031}) {
      const Tensor x = random_tensor(dtype, {2, dim}, 1);
      const Tensor y(dtype, {3, dim});
      gather_rows(stream, {.y = y, .x = x, .source_of = from_ints({1, 0, 1}), .slots = 1});
      for (const int64_t row : {0, 1, 2}) {
        support::expect_same_bits(y.view().rows(row, 1), x.view().rows(1 - row % 2, 1), "row");
      }
    }
  }
}

TEST(GatherRows, TakesFewerRowsThanThereAre) {
  Stream stream(support::device());
  const Tensor x = random_tensor(DType::kF32, {5, 3}, 1);
  const Tensor y(DType::kF32, {2, 3});
  gather_rows(stream, {.y = y, .x = x, .source_of = from_ints({4, 1}), .slots = 1});
  support::expect_same_bits(y.view().rows(0, 1), x.view().rows(4, 1), "row 0");
  support::expect_same_bits(y.view().rows(1, 1), x.view().rows(1, 1), "row 1");
}

/// By tokens: y of two rows from x of two tokens, 1 and 2, with two pairs each.
void gather_numbers(const TensorView& y, const std::vector<int32_t>& source_of,
                    const std::vector<int32_t>& row_of, Device device) {
  Stream stream(device);
  const Tensor x = support::from_doubles(DType::kF32, {2, 1}, std::vector<double>{1, 2});
  gather_rows(stream, {.y = y,
                       .x = x,
                       .source_of = from_ints(source_of),
                       .slots = 2,
                       .row_of = from_ints(row_of).view().reshape({2, 2})});
}

TEST(GatherRows, RefusesIndicesOutOfRangeOnTheCpu) {
  const Tensor y = support::filled(DType::kF32, {2, 1}, 9);
  const auto refuses = [&](const std::vector<int32_t>& source_of,
                           const std::vector<int32_t>& row_of, const std::string& sentence) {
    expect_error([&] { gather_numbers(y, source_of, row_of, Device{}); },
                 "gather_rows: " + sentence);
    EXPECT_EQ(support::to_doubles(y), (std::vector<double>{9, 9}));
  };
  const std::vector<int32_t> right{1, -1, -1, 0};
  refuses({3, 4}, right, "source_of has 4, expected 0 to 3");
  refuses({-1, 0}, right, "source_of has -1, expected 0 to 3");
  refuses({3, 0}, {1, 2, -1, 0}, "row_of has 2, expected -1 to 1");
  refuses({3, 0}, {1, -2, -1, 0}, "row_of has -2, expected -1 to 1");
  refuses({3, 0}, {1, -1, 0, -1}, "row_of has 0 for pair 2, but source_of has 3 for that row");
  refuses({3, 0}, {1, -1, -1, -1}, "row_of has 1 rows, expected 2, those of source_of");
  gather_numbers(y, {3, 0}, right, Device{});
  EXPECT_EQ(support::to_doubles(y), (std::vector<double>{2, 1}));
}

TEST(GatherRows, MovesNothingForIndicesOutOfRangeOnAGpu) {
  const Device device = support::device();
  if (device.kind == DeviceKind::kCpu) GTEST_SKIP() << "the CPU refuses them";
  const Tensor y = support::filled(DType::kF32, {2, 1}, 9);
  constexpr int32_t kLeast = std::numeric_limits<int32_t>::min();
  constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
  gather_numbers(y, {0, 0}, {2, kMost, kLeast, 1}, device);
  EXPECT_EQ(support::to_doubles(y), (std::vector<double>{9, 2}));
  const Tensor x = support::from_doubles(DType::kF32, {2, 1}, std::vector<double>{1, 2});
  Stream stream(device);
  gather_rows(stream, {.y = y, .x = x, .source_of = from_ints({0, 4}), .slots = 2});
  EXPECT_EQ(support::to_doubles(y), (std::vector<double>{1, 2}));
  gather_rows(stream, {.y = y, .x = x, .source_of = from_ints({kLeast, 0}), .slots = 2});
  EXPECT_EQ(support::to_doubles(y), (std::vector<double>{1, 1}));
}

TEST(GatherRows, SaysWhatIsWrong) {
  Stream stream(Device{DeviceKind::kPlan});
  const auto f32 = [](Shape shape) { return plan_view(DType::kF32, shape); };
  const auto i32 = [](Shape shape) { return plan_view(DType::kI32, shape); };
  const TensorView x = f32({3, 8});
  const TensorView y = f32({6, 8});
  gather_rows(stream, {.y = y, .x = x, .source_of = i32({6}), .slots = 2, .row_of = i32({3, 2})});
  expect_error(
      [&] {
        gather_rows(stream, {.y = f32({6, 7}), .x = x, .source_of = i32({6}), .slots = 2});
      },
      "gather_rows: y is f32 [6, 7], expected f32 [rows, dim] = [6, 8]");
  expect_error([&] { gather_rows(stream, {.y = y, .x = x, .source_of = i32({6}), .slots = 0}); },
               "gather_rows: slots is 0, expected at least 1");
  const auto with_row_of = [&](ConstTensorView row_of) {
    gather_rows(stream, {.y = y, .x = x, .source_of = i32({6}), .slots = 2, .row_of = row_of});
  };
  expect_error(
      [&] {
        with_row_of(i32({2, 3}));
      },
      "gather_rows: row_of is i32 [2, 3], expected i32 [tokens, k] = [3, 2]");
  expect_error(
      [&] {
        with_row_of(f32({3, 2}));
      },
      "gather_rows: row_of is f32 [3, 2], expected i32 [tokens, k] = [3, 2]");
}

}  // namespace
}  // namespace tessera
