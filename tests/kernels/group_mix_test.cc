#include "kernels/group_mix.h"

#include <gtest/gtest.h>

#include <functional>

#include "tests/support/compare.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using support::plan_view;
using support::random_tensor;
using support::Tensor;
using support::to_doubles;

constexpr int64_t kTokens = 11;
constexpr int64_t kHeads = 6;
constexpr int64_t kDim = 9;
constexpr int64_t kGroups = 3;

Tensor shares() {
  return support::from_doubles(DType::kF32, {kGroups}, std::vector<double>{0.25, 1, 0});
}

/// body(element, token, group) for all of a [tokens, heads, d] tensor.
void for_elements(const std::function<void(size_t, size_t, size_t)>& body) {
  size_t element = 0;
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t head = 0; head < kHeads; ++head) {
      for (int64_t i = 0; i < kDim; ++i) body(element++, t, head / (kHeads / kGroups));
    }
  }
}

TEST(GroupMix, IsTheDefinition) {
  Stream stream{support::device(), 2};
  for (const DType dtype : support::dtypes()) {
    const Tensor a = random_tensor(dtype, {kTokens, kHeads, kDim}, 1);
    const Tensor b = random_tensor(dtype, a.shape(), 2);
    const Tensor w = shares();
    const Tensor y(dtype, a.shape());
    mix_groups(stream, {.y = y, .a = a, .b = b, .shares = w});
    std::vector<double> expected(to_doubles(a).size());
    for_elements([&, of_a = to_doubles(a), of_b = to_doubles(b), of_w = to_doubles(w)](
                     size_t i, size_t, size_t c) {
      expected[i] = of_w[c] * of_a[i] + (1 - of_w[c]) * of_b[i];
    });
    support::expect_close(y, expected, support::tolerance(dtype), name_of(dtype));
  }
}

TEST(GroupMix, SharesOfOneAndZeroCopy) {
  Stream stream{support::device(), 1};
  const Tensor a = random_tensor(DType::kBF16, {kTokens, kHeads, kDim}, 1);
  const Tensor b = random_tensor(DType::kBF16, a.shape(), 2);
  const Tensor y(DType::kBF16, a.shape());
  mix_groups(stream, {.y = y, .a = a, .b = b, .shares = shares()});
  for_elements([&, of_a = to_doubles(a), of_b = to_doubles(b), of_y = to_doubles(y)](
                   size_t i, size_t, size_t c) {
    if (c == 0) return;
    EXPECT_EQ(of_y[i], (c == 1 ? of_a : of_b)[i]);
  });
}

TEST(GroupMix, GradientIsTheDefinition) {
  Stream stream{support::device(), 2};
  for (const DType dtype : support::dtypes()) {
    const Tensor a = random_tensor(dtype, {kTokens, kHeads, kDim}, 1);
    const Tensor b = random_tensor(dtype, a.shape(), 2);
    const Tensor dy = random_tensor(dtype, a.shape(), 3);
    const Tensor w = shares();
    const Tensor da = support::copy_of(dy);  // which it may alias
    const Tensor db(dtype, a.shape());
    const Tensor slopes(DType::kF32, {kGroups, kTokens});
    mix_groups_backward(
        stream, {.da = da, .db = db, .slopes = slopes, .dy = da, .a = a, .b = b, .shares = w});
    std::vector<double> of_da(to_doubles(a).size());
    std::vector<double> of_db(of_da.size());
    std::vector<double> of_slopes(kGroups * kTokens);
    for_elements([&, of_a = to_doubles(a), of_b = to_doubles(b), of_w = to_doubles(w),
                  of_dy = to_doubles(dy)](size_t i, size_t t, size_t c) {
      of_da[i] = of_w[c] * of_dy[i];
      of_db[i] = (1 - of_w[c]) * of_dy[i];
      of_slopes[c * kTokens + t] += of_dy[i] * (of_a[i] - of_b[i]);
    });
    support::expect_close(da, of_da, support::tolerance(dtype), "da");
    support::expect_close(db, of_db, support::tolerance(dtype), "db");
    support::expect_close(slopes, of_slopes, support::tolerance(DType::kF32), "slopes");
  }
}

TEST(GroupMix, GivesTheSameBitsOnAnyNumberOfThreads) {
  const Tensor a = random_tensor(DType::kBF16, {400, kHeads, kDim}, 4);
  const Tensor b = random_tensor(DType::kBF16, a.shape(), 5);
  const Tensor w = shares();
  support::expect_same_on_any_threads([&](Stream& stream) {
    Tensor y(DType::kBF16, a.shape());
    Tensor da(DType::kBF16, a.shape());
    Tensor db(DType::kBF16, a.shape());
    Tensor slopes(DType::kF32, {kGroups, 400});
    mix_groups(stream, {.y = y, .a = a, .b = b, .shares = w});
    mix_groups_backward(
        stream, {.da = da, .db = db, .slopes = slopes, .dy = y, .a = a, .b = b, .shares = w});
    return support::tensors(std::move(y), std::move(da), std::move(db), std::move(slopes));
  });
}

TEST(GroupMix, SaysWhatIsWrong) {
  Stream stream(Device{DeviceKind::kPlan});
  const TensorView x = plan_view(DType::kF32, {4, 6, 8});
  const TensorView w = plan_view(DType::kF32, {3});
  support::expect_error(
      [&] {
        mix_groups(stream, {.y = x, .a = x, .b = plan_view(DType::kF32, {4, 6, 9}), .shares = w});
      },
      "mix_groups: b is f32 [4, 6, 9], expected f32 [tokens, heads, d] = [4, 6, 8]");
  support::expect_error(
      [&] { mix_groups(stream, {.y = x, .a = x, .b = x, .shares = plan_view(DType::kF32, {4})}); },
      "mix_groups: shares has 4 groups, expected a divisor of heads = 6");
  support::expect_error(
      [&] {
        mix_groups_backward(stream, {.da = x,
                                     .db = x,
                                     .slopes = plan_view(DType::kF32, {4, 3}),
                                     .dy = x,
                                     .a = x,
                                     .b = x,
                                     .shares = w});
      },
      "mix_groups_backward: slopes is f32 [4, 3], expected f32 [groups, tokens] = [3, 4]");
}

}  // namespace
}  // namespace tessera
