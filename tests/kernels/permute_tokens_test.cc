#include "kernels/permute_tokens.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "tests/reference/complex_step.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using support::expect_close;
using support::expect_error;
using support::from_ints;
using support::plan_view;
using support::random_tensor;
using support::Tensor;
using support::to_doubles;

struct Sorted {
  Tensor row_of, source_of, offsets;
};

Sorted sort(const TensorView& experts, int64_t number, Device device = support::device()) {
  Sorted out{Tensor(DType::kI32, experts.shape()), Tensor(DType::kI32, {experts.elements()}),
             Tensor(DType::kI32, {number + 1})};
  Stream stream(device);
  sort_by_expert(stream, {.row_of = out.row_of,
                          .source_of = out.source_of,
                          .offsets = out.offsets,
                          .experts = experts});
  return out;
}

std::vector<int32_t> ints(const Tensor& x) {
  const auto values = x.as<int32_t>();
  return {values.begin(), values.end()};
}

/// k of the experts per token, distinct, in an order that looks random.
Tensor choices(int64_t tokens, int64_t k, int32_t experts) {
  Tensor chosen(DType::kI32, {tokens, k});
  const Tensor seeds = support::random_ints({tokens}, 5, 0, 1 << 20);
  for (int64_t t = 0; t < tokens; ++t) {
    const int32_t start = seeds.as<int32_t>()[static_cast<size_t>(t)];
    for (int64_t s = 0; s < k; ++s) {
      chosen.as<int32_t>()[static_cast<size_t>(t * k + s)] =
          (start + static_cast<int32_t>(s) * 3) % experts;
    }
  }
  return chosen;
}

TEST(SortByExpert, OrdersByExpertThenToken) {
  const Tensor experts = from_ints({2, 0, 3, 2, 0, 3});
  const Sorted sorted = sort(experts.view().reshape({3, 2}), 5);
  EXPECT_EQ(ints(sorted.offsets), (std::vector<int32_t>{0, 2, 2, 4, 6, 6}));
  EXPECT_EQ(ints(sorted.source_of), (std::vector<int32_t>{1, 4, 0, 3, 2, 5}));
  EXPECT_EQ(ints(sorted.row_of), (std::vector<int32_t>{2, 0, 4, 3, 1, 5}));
}

void check_sort(int64_t tokens, int64_t k, int32_t number) {
  const Tensor experts = choices(tokens, k, number);
  const Sorted sorted = sort(experts, number + 1);  // the last expert gets none
  const std::vector<int32_t> of_pair = ints(experts);
  std::vector<int32_t> order(of_pair.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t left, int32_t right) {
    return of_pair[static_cast<size_t>(left)] < of_pair[static_cast<size_t>(right)];
  });
  EXPECT_EQ(ints(sorted.source_of), order);
  const std::vector<int32_t> rows = ints(sorted.row_of);
  for (size_t row = 0; row < order.size(); ++row) {
    EXPECT_EQ(rows[static_cast<size_t>(order[row])], static_cast<int32_t>(row));
  }
  const std::vector<int32_t> offsets = ints(sorted.offsets);
  for (int32_t e = 0; e <= number; ++e) {
    EXPECT_EQ(offsets[static_cast<size_t>(e) + 1] - offsets[static_cast<size_t>(e)],
              std::count(of_pair.begin(), of_pair.end(), e));
  }
}

TEST(SortByExpert, AgreesWithAStableSort) {
  check_sort(501, 4, 13);
  check_sort(2501, 3, 300);  // enough for a GPU to have several chunks of pairs
}

TEST(SortByExpert, TakesNoTokens) {
  const Sorted sorted = sort(Tensor(DType::kI32, {0, 2}), 3);
  EXPECT_EQ(ints(sorted.offsets), std::vector<int32_t>(4, 0));
}

TEST(SortByExpert, RefusesExpertsThatDoNotExist) {
  for (const int32_t bad : {-1, 3}) {
    expect_error(
        [&] {
          sort(from_ints({0, bad}).view().reshape({1, 2}), 3, Device{});
        },
        concat("sort_by_expert: experts has ", bad, ", expected 0 to 2"));
  }
}

struct Merged {
  Tensor order, offsets;
};

Merged merge(const std::vector<int32_t>& counts, int64_t sources, int64_t experts, int64_t capacity,
             Device device = support::device()) {
  Merged out{support::filled(DType::kI32, {capacity}, -7), Tensor(DType::kI32, {experts + 1})};
  Stream stream(device);
  merge_expert_rows(stream, {.order = out.order,
                             .offsets = out.offsets,
                             .counts = from_ints(counts).view().reshape({sources, experts})});
  return out;
}

TEST(MergeExpertRows, OrdersByExpertThenSource) {
  // Received: 2 rows of expert 0 and 1 of expert 1 from source 0, 1 and 3 from source 1.
  const Merged merged = merge({2, 1, 1, 3}, 2, 2, 9);
  EXPECT_EQ(ints(merged.offsets), (std::vector<int32_t>{0, 3, 7}));
  EXPECT_EQ(ints(merged.order), (std::vector<int32_t>{0, 1, 3, 2, 4, 5, 6, -7, -7}));
}

TEST(MergeExpertRows, AgreesWithAStableSort) {
  for (const auto& [sources, experts] : {std::pair<int64_t, int64_t>{1, 7}, {4, 5}, {6, 1}}) {
    const Tensor counts = support::random_ints({sources * experts}, 3, 0, 9);
    std::vector<int32_t> of_row;
    for (size_t i = 0; i < counts.as<int32_t>().size(); ++i) {
      of_row.insert(of_row.end(), static_cast<size_t>(counts.as<int32_t>()[i]),
                    static_cast<int32_t>(i % static_cast<size_t>(experts)));
    }
    const auto rows = static_cast<int64_t>(of_row.size());
    std::vector<int32_t> expected(of_row.size());
    std::iota(expected.begin(), expected.end(), 0);
    std::stable_sort(expected.begin(), expected.end(), [&](int32_t left, int32_t right) {
      return of_row[static_cast<size_t>(left)] < of_row[static_cast<size_t>(right)];
    });
    const Merged merged = merge(ints(counts), sources, experts, rows);
    EXPECT_EQ(ints(merged.order), expected);
    const std::vector<int32_t> offsets = ints(merged.offsets);
    for (size_t e = 0; e < static_cast<size_t>(experts); ++e) {
      EXPECT_EQ(offsets[e + 1] - offsets[e],
                std::count(of_row.begin(), of_row.end(), static_cast<int32_t>(e)));
    }
  }
}

TEST(MergeExpertRows, TakesNoRowsAndNoExperts) {
  EXPECT_EQ(ints(merge({0, 0, 0}, 1, 3, 0).offsets), std::vector<int32_t>(4, 0));
  EXPECT_EQ(ints(merge({}, 2, 0, 3).offsets), std::vector<int32_t>(1, 0));
}

TEST(MergeExpertRows, RefusesCountsThatCannotBe) {
  expect_error(
      [] {
        merge({2, -1}, 1, 2, 9, Device{});
      },
      "merge_expert_rows: counts has -1, expected at least 0");
  expect_error(
      [] {
        merge({2, 3}, 1, 2, 4, Device{});
      },
      "merge_expert_rows: counts has 5 rows, expected at most 4, the elements of order");
}

// What ranks get by exchanging sorted rows is, put in order, what one rank sorts.
TEST(MergeExpertRows, GivesTheRowsThatOneRankWouldSort) {
  Stream stream(support::device());
  constexpr int64_t kTokens = 40;
  const Tensor experts = choices(kTokens, 2, 7);
  const Tensor x = random_tensor(DType::kF32, {kTokens, 5}, 4);
  const Sorted whole = sort(experts, 7);
  const Tensor expected(DType::kF32, {2 * kTokens, 5});
  gather_rows(stream, {.y = expected, .x = x, .source_of = whole.source_of, .slots = 2});

  const Tensor received(DType::kF32, {2 * kTokens, 5});
  std::vector<int32_t> counts;
  int64_t row = 0;
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 11}, {11, 29}}) {
    const Sorted here = sort(experts.view().rows(first, count), 7);
    gather_rows(stream, {.y = received.view().rows(row, 2 * count),
                         .x = x.view().rows(first, count),
                         .source_of = here.source_of,
                         .slots = 2});
    row += 2 * count;
    const std::vector<int32_t> offsets = ints(here.offsets);
    for (size_t e = 0; e < 7; ++e) counts.push_back(offsets[e + 1] - offsets[e]);
  }
  const Merged merged = merge(counts, 2, 7, 2 * kTokens);
  EXPECT_EQ(ints(merged.offsets), ints(whole.offsets));
  const Tensor rows(DType::kF32, {2 * kTokens, 5});
  gather_rows(stream, {.y = rows, .x = received, .source_of = merged.order, .slots = 1});
  support::expect_same_bits(rows, expected, "rows");
}

TEST(ScatterRows, UndoesGatherRows) {
  Stream stream(support::device(), 2);
  const Merged merged = merge({2, 1, 1, 3, 0, 2}, 3, 2, 12);
  const TensorView order = merged.order.view().rows(0, 9);
  for (const DType dtype : support::dtypes()) {
    const Tensor x = random_tensor(dtype, {9, 19}, 1);
    const Tensor rows(dtype, {9, 19});
    const Tensor back = support::filled(dtype, {9, 19}, 99);
    gather_rows(stream, {.y = rows, .x = x, .source_of = order, .slots = 1});
    scatter_rows(stream, {.y = back, .x = rows, .order = order});
    support::expect_same_bits(back, x, name_of(dtype));
  }
}

TEST(ScatterRows, LeavesOtherRowsAsTheyAre) {
  Stream stream(support::device());
  const Tensor y = support::filled(DType::kF32, {4, 1}, 9);
  const Tensor x = support::from_doubles(DType::kF32, {2, 1}, std::vector<double>{1, 2});
  scatter_rows(stream, {.y = y, .x = x, .order = from_ints({3, 1})});
  EXPECT_EQ(to_doubles(y), (std::vector<double>{9, 2, 9, 1}));
}

// The header says that scatter_rows is the backward of gather_rows: through loss = sum dy * y.
TEST(ScatterRows, IsTheGradientOfGatherRows) {
  Stream stream(support::device());
  const std::vector<int32_t> order{3, 0, 4, 1};  // row 2 is not taken
  const Tensor x = random_tensor(DType::kF32, {5, 3}, 1);
  const Tensor dy = random_tensor(DType::kF32, {4, 3}, 2);
  const Tensor dx(DType::kF32, {5, 3});
  scatter_rows(stream, {.y = dx, .x = dy, .order = from_ints(order)});
  const auto gradient = reference::complex_step_gradient(
      to_doubles(x), [&](const std::vector<reference::Complex>& at) {
        std::vector<reference::Complex> y;
        for (const int32_t row : order) {
          for (size_t d = 0; d < 3; ++d) y.push_back(at[static_cast<size_t>(row) * 3 + d]);
        }
        return reference::weighted_sum<reference::Complex>(to_doubles(dy), y);
      });
  expect_close(dx, gradient, support::tolerance(DType::kF32), "dx");
}

TEST(GatherSum, SumsTheRowsOfATokenOnItsBase) {
  Stream stream(support::device());
  for (const DType dtype : support::dtypes()) {
    const Tensor x = random_tensor(dtype, {6, 35}, 1);
    const Tensor base = random_tensor(dtype, {3, 35}, 2);
    const Tensor rows = from_ints({4, 0, 1, 3, 5, 5});
    const TensorView row_of = rows.view().reshape({3, 2});
    std::vector<double> expected(3 * 35);
    for (size_t i = 0; i < expected.size(); ++i) {
      for (const size_t slot : {0, 1}) {
        const auto row = static_cast<size_t>(rows.as<int32_t>()[i / 35 * 2 + slot]);
        expected[i] += to_doubles(x)[row * 35 + i % 35];
      }
    }
    const Tensor y = support::filled(dtype, {3, 35}, 99);
    gather_sum(stream, {.y = y, .x = x, .row_of = row_of});
    expect_close(y, expected, support::tolerance(dtype), name_of(dtype));
    for (size_t i = 0; i < expected.size(); ++i) expected[i] += to_doubles(base)[i];
    gather_sum(stream, {.y = base, .x = x, .row_of = row_of, .base = base});
    expect_close(base, expected, support::tolerance(dtype), "in place on base");
  }
}

TEST(GatherSum, SumsLongRows) {
  Stream stream(support::device());
  for (const DType dtype : support::dtypes()) {
    constexpr int64_t kDim = 520;
    const Tensor x = random_tensor(dtype, {3, kDim}, 1);
    const Tensor rows = from_ints({2, 0, -1, 1, 1, 2});
    const Tensor y(dtype, {2, kDim});
    gather_sum(stream, {.y = y, .x = x, .row_of = rows.view().reshape({2, 3})});
    const std::vector<double> of = to_doubles(x);
    std::vector<double> expected;
    for (size_t d = 0; d < kDim; ++d) expected.push_back(of[2 * kDim + d] + of[d]);
    for (size_t d = 0; d < kDim; ++d) expected.push_back(2 * of[kDim + d] + of[2 * kDim + d]);
    expect_close(y, expected, support::tolerance(dtype), name_of(dtype));
  }
}

TEST(GatherSum, RoundsOnceAndAddsInSlotOrder) {
  Stream stream(support::device());
  // bf16: 256 + 1 rounds to 256, so rounding after each slot would give 256.
  const Tensor x = support::from_doubles(DType::kBF16, {3, 1}, std::vector<double>{256, 1, 1});
  const Tensor rows = from_ints({0, 1, 2});
  const Tensor y(DType::kBF16, {1, 1});
  gather_sum(stream, {.y = y, .x = x, .row_of = rows.view().reshape({1, 3})});
  EXPECT_EQ(to_doubles(y), std::vector<double>{258});
  // f32: ((base + big) + small) - big loses small, any other order keeps it.
  const Tensor big = support::from_doubles(DType::kF32, {3, 1}, std::vector<double>{1e8, 1, -1e8});
  const Tensor z(DType::kF32, {1, 1});
  gather_sum(stream, {.y = z, .x = big, .row_of = rows.view().reshape({1, 3})});
  EXPECT_EQ(to_doubles(z), std::vector<double>{0});
}

// The header says that gather_sum is the backward of gather_rows: through loss = sum dy * y.
TEST(GatherSum, IsTheGradientOfGatherRows) {
  const Tensor experts = choices(7, 3, 5);
  const Sorted sorted = sort(experts, 5);
  const Tensor x = random_tensor(DType::kF32, {7, 4}, 1);
  const Tensor dy = random_tensor(DType::kF32, {21, 4}, 2);
  const Tensor dx(DType::kF32, {7, 4});
  Stream stream(support::device());
  gather_sum(stream, {.y = dx, .x = dy, .row_of = sorted.row_of});
  const auto gradient = reference::complex_step_gradient(
      to_doubles(x), [&](const std::vector<reference::Complex>& at) {
        std::vector<reference::Complex> y;
        for (const int32_t pair : ints(sorted.source_of)) {
          for (size_t d = 0; d < 4; ++d) y.push_back(at[static_cast<size_t>(pair / 3) * 4 + d]);
        }
        return reference::weighted_sum<reference::Complex>(to_doubles(dy), y);
      });
  expect_close(dx, gradient, support::tolerance(DType::kF32), "dx");
}

TEST(PermutePairs, GoesToRowsAndBack) {
  Stream stream(support::device());
  const Tensor source_of = from_ints({2, 0, 3, 1});
  const Tensor x = support::from_doubles(DType::kF32, {2, 2}, std::vector<double>{10, 11, 12, 13});
  const Tensor rows(DType::kF32, {4});
  const Tensor back(DType::kF32, {2, 2});
  permute_pairs(stream, {.y = rows, .x = x, .source_of = source_of});
  EXPECT_EQ(to_doubles(rows), (std::vector<double>{12, 10, 13, 11}));
  permute_pairs(stream, {.y = back, .x = rows, .source_of = source_of, .inverse = true});
  EXPECT_EQ(to_doubles(back), to_doubles(x));
}

TEST(PermuteTokens, IsTheSameOnAnyNumberOfThreads) {
  const Tensor experts = choices(700, 2, 9);
  const Sorted sorted = sort(experts, 9);
  const Tensor x = random_tensor(DType::kBF16, {700, 130}, 1);
  support::expect_same_on_any_threads([&](Stream& stream) {
    Tensor rows(DType::kBF16, {1400, 130});
    Tensor sum(DType::kBF16, {700, 130});
    gather_rows(stream, {.y = rows, .x = x, .source_of = sorted.source_of, .slots = 2});
    gather_sum(stream, {.y = sum, .x = rows, .row_of = sorted.row_of, .base = x});
    Tensor scattered(DType::kBF16, {1400, 130});
    scatter_rows(stream, {.y = scattered, .x = rows, .order = sorted.source_of});
    return support::tensors(std::move(rows), std::move(sum), std::move(scattered));
  });
}

TEST(PermuteTokens, RefusesIndicesOutOfRange) {
  Stream stream(Device{});
  const Tensor x(DType::kF32, {2, 3});
  expect_error(
      [&] {
        gather_sum(stream, {.y = Tensor(DType::kF32, {1, 3}),
                            .x = x,
                            .row_of = from_ints({-2}).view().reshape({1, 1})});
      },
      "gather_sum: row_of has -2, expected -1 to 1");
  for (const int32_t bad : {-1, 2}) {
    expect_error(
        [&] {
          scatter_rows(stream,
                       {.y = x, .x = Tensor(DType::kF32, {1, 3}), .order = from_ints({bad})});
        },
        concat("scatter_rows: order has ", bad, ", expected 0 to 1"));
  }
  expect_error(
      [&] {
        const Tensor y(DType::kF32, {1});
        permute_pairs(stream, {.y = y, .x = y, .source_of = from_ints({1})});
      },
      "permute_pairs: source_of has 1, expected 0 to 0");
}

TEST(PermuteTokens, MergeAndScatterSayWhatIsWrong) {
  Stream stream(Device{DeviceKind::kPlan});
  const auto f32 = [](Shape shape) { return plan_view(DType::kF32, shape); };
  const auto i32 = [](Shape shape) { return plan_view(DType::kI32, shape); };
  merge_expert_rows(stream, {.order = i32({9}), .offsets = i32({4}), .counts = i32({2, 3})});
  expect_error(
      [&] {
        merge_expert_rows(stream, {.order = i32({9}), .offsets = i32({4}), .counts = i32({6})});
      },
      "merge_expert_rows: counts is [6], expected [sources, local experts]");
  expect_error(
      [&] {
        merge_expert_rows(stream, {.order = i32({9}), .offsets = i32({3}), .counts = i32({2, 3})});
      },
      "merge_expert_rows: offsets is i32 [3], expected i32 [local experts + 1] = [4]");
  expect_error(
      [&] {
        merge_expert_rows(stream, {.order = f32({9}), .offsets = i32({4}), .counts = i32({2, 3})});
      },
      "merge_expert_rows: order is f32 [9], expected i32 [capacity]");
  scatter_rows(stream, {.y = f32({9, 8}), .x = f32({6, 8}), .order = i32({6})});
  expect_error(
      [&] {
        scatter_rows(stream, {.y = f32({9, 8}), .x = f32({6, 8}), .order = i32({5})});
      },
      "scatter_rows: order is i32 [5], expected i32 [rows] = [6]");
  expect_error(
      [&] {
        scatter_rows(stream, {.y = f32({9, 7}), .x = f32({6, 8}), .order = i32({6})});
      },
      "scatter_rows: y is f32 [9, 7], expected f32 [any number, dim] = [9, 8]");
}

TEST(PermuteTokens, SaysWhatIsWrong) {
  Stream stream(Device{DeviceKind::kPlan});
  const auto f32 = [](Shape shape) { return plan_view(DType::kF32, shape); };
  const auto i32 = [](Shape shape) { return plan_view(DType::kI32, shape); };
  sort_by_expert(
      stream,
      {.row_of = i32({3, 2}), .source_of = i32({6}), .offsets = i32({5}), .experts = i32({3, 2})});
  expect_error(
      [&] {
        sort_by_expert(stream, {.row_of = i32({2, 3}),
                                .source_of = i32({6}),
                                .offsets = i32({5}),
                                .experts = i32({3, 2})});
      },
      "sort_by_expert: row_of is i32 [2, 3], expected i32 [tokens, k] = [3, 2]");
  expect_error(
      [&] {
        sort_by_expert(stream, {.row_of = i32({3, 2}),
                                .source_of = i32({5}),
                                .offsets = i32({5}),
                                .experts = i32({3, 2})});
      },
      "sort_by_expert: source_of is i32 [5], expected i32 [tokens * k] = [6]");
  expect_error(
      [&] {
        gather_sum(stream, {.y = f32({3, 8}), .x = f32({6, 8}), .row_of = i32({6})});
      },
      "gather_sum: row_of is [6], expected [tokens, k]");
  expect_error(
      [&] {
        gather_sum(
            stream,
            {.y = f32({3, 8}), .x = f32({6, 8}), .row_of = i32({3, 2}), .base = f32({3, 7})});
      },
      "gather_sum: base is f32 [3, 7], expected f32 [tokens, dim] = [3, 8]");
  expect_error(
      [&] { permute_pairs(stream, {.y = f32({6}), .x = f32({5}), .source_of = i32({6})}); },
      "permute_pairs: x is f32 [5], expected f32 of at least 6 elements");
}

}  // namespace
}  // namespace tessera
