#include "kernels/group_heads.h"

#include <gtest/gtest.h>

#include <array>

#include "tests/support/compare.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using support::plan_view;
using support::random_tensor;
using support::Tensor;
using support::to_doubles;

constexpr int64_t kTokens = 5;
constexpr int64_t kHeads = 6;
constexpr int64_t kDim = 9;
constexpr int64_t kGroupHeads = 2;
constexpr std::array<int32_t, 2> kGroups{2, 0};

/// Where element (c, t, i) of y lies in x, by the definition.
size_t place(int64_t c, int64_t t, int64_t i) {
  const int64_t head = kGroups[static_cast<size_t>(c)] * kGroupHeads + i / kDim;
  return static_cast<size_t>((t * kHeads + head) * kDim + i % kDim);
}

TEST(GroupHeads, TakesHeadsSideBySide) {
  Stream stream{support::device(), 2};
  for (const DType dtype : support::dtypes()) {
    const Tensor x = random_tensor(dtype, {kTokens, kHeads, kDim}, 1);
    const Tensor y(dtype, {2, kTokens, kGroupHeads * kDim});
    take_groups(stream, {.y = y, .x = x, .groups = kGroups, .group_heads = kGroupHeads});
    const auto from = to_doubles(x);
    const auto to = to_doubles(y);
    size_t next = 0;
    for (int64_t c = 0; c < 2; ++c) {
      for (int64_t t = 0; t < kTokens; ++t) {
        for (int64_t i = 0; i < kGroupHeads * kDim; ++i) {
          ASSERT_EQ(to[next++], from[place(c, t, i)]) << c << " " << t << " " << i;
        }
      }
    }
  }
}

TEST(GroupHeads, AddsBackAndLeavesOthersAlone) {
  Stream stream{support::device(), 2};
  for (const DType dtype : support::dtypes()) {
    for (const DType y_dtype : {DType::kF32, dtype}) {
      const Tensor x = random_tensor(dtype, {kTokens, kHeads, kDim}, 2);
      const Tensor y = random_tensor(y_dtype, {2, kTokens, kGroupHeads * kDim}, 3);
      auto sums = to_doubles(x);
      const auto more = to_doubles(y);
      size_t next = 0;
      for (int64_t c = 0; c < 2; ++c) {
        for (int64_t t = 0; t < kTokens; ++t) {
          for (int64_t i = 0; i < kGroupHeads * kDim; ++i) sums[place(c, t, i)] += more[next++];
        }
      }
      add_groups(stream, {.x = x, .y = y, .groups = kGroups, .group_heads = kGroupHeads});
      support::expect_same_bits(x, support::from_doubles(dtype, x.shape(), sums),
                                concat(name_of(dtype), " += ", name_of(y_dtype)));
    }
  }
}

TEST(GroupHeads, GivesTheSameBitsOnAnyNumberOfThreads) {
  const Tensor x = random_tensor(DType::kBF16, {700, kHeads, kDim}, 4);
  const Tensor y = random_tensor(DType::kF32, {2, 700, kGroupHeads * kDim}, 5);
  support::expect_same_on_any_threads([&](Stream& stream) {
    Tensor sum = support::copy_of(x);
    Tensor taken(DType::kBF16, y.shape());
    add_groups(stream, {.x = sum, .y = y, .groups = kGroups, .group_heads = kGroupHeads});
    take_groups(stream, {.y = taken, .x = sum, .groups = kGroups, .group_heads = kGroupHeads});
    return support::tensors(std::move(sum), std::move(taken));
  });
}

TEST(GroupHeads, SaysWhatIsWrong) {
  Stream stream(Device{DeviceKind::kPlan});
  const TensorView x = plan_view(DType::kF32, {4, 6, 8});
  const TensorView y = plan_view(DType::kF32, {2, 4, 16});
  constexpr std::array<int32_t, 2> kBeyond{0, 3};
  support::expect_error(
      [&] { take_groups(stream, {.y = y, .x = x, .groups = kBeyond, .group_heads = 2}); },
      "take_groups: group is 3, expected 0 to 2");
  support::expect_error(
      [&] { take_groups(stream, {.y = y, .x = x, .groups = kGroups, .group_heads = 4}); },
      "take_groups: group_heads is 4, expected a divisor of heads = 6");
  support::expect_error(
      [&] { add_groups(stream, {.x = x, .y = y, .groups = kGroups, .group_heads = 1}); },
      "add_groups: y is [2, 4, 16], expected [groups, tokens, g * d] = [2, 4, 8]");
}

}  // namespace
}  // namespace tessera
