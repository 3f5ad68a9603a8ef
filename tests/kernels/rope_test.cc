#include "kernels/rope.h"

#include <gtest/gtest.h>

#include "tests/reference/complex_step.h"
#include "tests/reference/rope.h"
#include "tests/support/compare.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using support::copy_of;
using support::plan_view;
using support::random_tensor;
using support::Tensor;
using support::to_doubles;

TEST(Rope, MatchesTheReferenceUpToAMillionTokens) {
  Stream stream{support::device(), 2};
  const Tensor positions = support::from_ints({0, 1, 2, 511, 4096, 65537, 1'000'000});
  for (const DType dtype : support::dtypes()) {
    for (const int64_t d : {2, 8, 64, 100}) {
      for (const float base : {10'000.0f, 1e6f}) {
        SCOPED_TRACE(concat(name_of(dtype), " d ", d, " base ", base));
        const Tensor x = random_tensor(dtype, {7, 3, d}, 1);
        const auto expected = reference::rope(to_doubles(x), to_doubles(positions), 3, base);
        rope(stream, {.x = x, .positions = positions, .base = base});
        support::expect_close(x, expected, support::tolerance(dtype), "x");
      }
    }
  }
}

TEST(Rope, LeavesPositionZeroAlone) {
  Stream stream{support::device()};
  const Tensor x = random_tensor(DType::kF32, {1, 2, 16}, 2);
  const Tensor before = copy_of(x);
  rope(stream, {.x = x, .positions = support::from_ints({0}), .base = 1e4f});
  support::expect_same_bits(x, before, "x");
}

TEST(Rope, InverseIsTheGradientOfForward) {
  Stream stream{support::device()};
  const Tensor positions = support::from_ints({0, 3, 77});
  for (const DType dtype : support::dtypes()) {
    const Tensor x = random_tensor(dtype, {3, 2, 10}, 3);
    const Tensor dy = random_tensor(dtype, {3, 2, 10}, 4);
    const auto gradient = reference::complex_step_gradient(to_doubles(x), [&](const auto& at) {
      return reference::weighted_sum(to_doubles(dy),
                                     reference::rope(at, to_doubles(positions), 2, 1e4));
    });
    rope(stream, {.x = dy, .positions = positions, .base = 1e4f, .inverse = true});
    support::expect_close(dy, gradient, support::tolerance(dtype), "dx");
  }
}

TEST(Rope, GivesTheSameBitsOnAnyNumberOfThreads) {
  const Tensor x = random_tensor(DType::kBF16, {300, 4, 64}, 5);
  const Tensor positions = support::random_ints({300}, 6, 0, 5000);
  support::expect_same_on_any_threads([&](Stream& stream) {
    Tensor y = copy_of(x);
    rope(stream, {.x = y, .positions = positions, .base = 1e4f});
    return support::tensors(std::move(y));
  });
}

TEST(Rope, SaysWhatIsWrong) {
  Stream stream(Device{DeviceKind::kPlan});
  const TensorView positions = plan_view(DType::kI32, {4});
  support::expect_error(
      [&] {
        rope(stream,
             {.x = plan_view(DType::kF32, {4, 2, 7}), .positions = positions, .base = 1e4f});
      },
      "rope: d is 7, expected even and at most 1024");
  support::expect_error(
      [&] {
        rope(stream,
             {.x = plan_view(DType::kF32, {5, 2, 8}), .positions = positions, .base = 1e4f});
      },
      "rope: positions is i32 [4], expected i32 [tokens] = [5]");
}

}  // namespace
}  // namespace tessera
