#include "kernels/cross_entropy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/reference/complex_step.h"
#include "tests/reference/cross_entropy.h"
#include "tests/support/compare.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using support::copy_of;
using support::from_doubles;
using support::from_ints;
using support::plan_view;
using support::random_tensor;
using support::Tensor;
using support::to_doubles;

struct Result {
  Tensor losses;
  Tensor dlogits;
};

Result run(Stream& stream, const Tensor& logits, const Tensor& targets, int64_t vocabulary,
           float scale = 1) {
  Result out{Tensor(DType::kF32, {logits.shape()[0]}),
             support::filled(logits.dtype(), logits.shape(), 99)};
  cross_entropy(stream, {.losses = out.losses,
                         .dlogits = out.dlogits,
                         .logits = logits,
                         .targets = targets,
                         .vocabulary = vocabulary,
                         .scale = scale});
  return out;
}

TEST(CrossEntropy, MatchesTheReferenceAndItsGradient) {
  Stream stream{Device{}, 2};
  constexpr float kScale = 0.125f;
  const Tensor targets = from_ints({3, -1, 0, 20, -100, 7});
  for (const DType dtype : support::dtypes()) {
    for (const int64_t vocabulary : {21, 32, 37}) {
      SCOPED_TRACE(concat(name_of(dtype), " vocabulary ", vocabulary));
      const auto words = static_cast<size_t>(vocabulary);
      const Tensor logits = random_tensor(dtype, {6, 40}, 1, 3);
      const Result out = run(stream, logits, targets, vocabulary, kScale);
      support::expect_close(
          out.losses, reference::cross_entropy(to_doubles(logits), to_doubles(targets), words),
          support::tolerance(DType::kF32), "losses");
      const std::vector<double> scales(6, kScale);
      const auto gradient =
          reference::complex_step_gradient(to_doubles(logits), [&](const auto& at) {
            return reference::weighted_sum(
                scales, reference::cross_entropy(at, to_doubles(targets), words));
          });
      support::expect_close(out.dlogits, gradient, support::tolerance(dtype), "dlogits");
    }
  }
}

TEST(CrossEntropy, PaddingAndIgnoredTokensGetExactZeros) {
  Stream stream{Device{}};
  Tensor logits = random_tensor(DType::kF32, {2, 8}, 2);
  for (size_t v = 5; v < 8; ++v) logits.as<float>()[v] = 1e30f;  // padding has no probability
  const Result out = run(stream, logits, from_ints({4, -1}), 5);
  const auto dlogits = to_doubles(out.dlogits);
  for (size_t i = 5; i < 16; ++i) EXPECT_EQ(dlogits[i], 0.0) << i;
  EXPECT_LT(out.losses.as<float>()[0], 10.0f);
  EXPECT_EQ(out.losses.as<float>()[1], 0.0f);
}

TEST(CrossEntropy, LargeLogitsAreSafe) {
  Stream stream{Device{}};
  const std::vector<double> rows{1e4, -1e4, 0, 1e4, -1e4, 0, 1e30, 1e30, -1e30, -5e4, -5e4, -5e4};
  const Result out =
      run(stream, from_doubles(DType::kF32, {4, 3}, rows), from_ints({0, 1, 0, 2}), 3);
  support::expect_close(out.losses, std::vector<double>{0, 2e4, std::log(2.0), std::log(3.0)},
                        1e-12, "losses");
  support::expect_close(
      out.dlogits, std::vector<double>{0, 0, 0, 1, -1, 0, -0.5, 0.5, 0, 1. / 3, 1. / 3, -2. / 3},
      1e-12, "dlogits");
}

TEST(CrossEntropy, SmallLossesKeepTheirDigits) {
  Stream stream{Device{}};
  const std::vector<double> row{0, -14, -200, -std::numeric_limits<double>::infinity()};
  const Result out = run(stream, from_doubles(DType::kF32, {1, 4}, row), from_ints({0}), 4);
  EXPECT_NEAR(out.losses.as<float>()[0], std::log1p(std::exp(-14.0)), 1e-7);
  EXPECT_EQ(out.dlogits.as<float>()[3], 0.0f);
}

TEST(CrossEntropy, NanAndInfinityReachTheLoss) {
  Stream stream{Device{}};
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    for (const size_t at : {0u, 15u, 17u}) {
      std::vector<double> row(18, 0.5);
      row[at] = bad;
      const Result out = run(stream, from_doubles(DType::kF32, {1, 18}, row), from_ints({3}), 18);
      EXPECT_FALSE(std::isfinite(out.losses.as<float>()[0])) << bad << " at " << at;
    }
  }
}

TEST(CrossEntropy, GradientMayOverwriteTheLogitsOrBeLeftOut) {
  Stream stream{Device{}};
  const Tensor targets = from_ints({1, 5, -1});
  for (const DType dtype : support::dtypes()) {
    const Tensor logits = random_tensor(dtype, {3, 20}, 4);
    const Result apart = run(stream, logits, targets, 20, 0.5f);
    const Tensor losses(DType::kF32, {3});
    CrossEntropy a{.losses = losses,
                   .dlogits = {},
                   .logits = logits,
                   .targets = targets,
                   .vocabulary = 20,
                   .scale = 0.5f};
    cross_entropy(stream, a);
    support::expect_same_bits(losses, apart.losses, "losses without dlogits");
    a.dlogits = logits;
    cross_entropy(stream, a);
    support::expect_same_bits(losses, apart.losses, "losses in place");
    support::expect_same_bits(logits, apart.dlogits, "dlogits over logits");
  }
}

TEST(CrossEntropy, GivesTheSameBitsOnAnyNumberOfThreads) {
  const Tensor logits = random_tensor(DType::kBF16, {40, 5000}, 5, 4);
  const Tensor targets = support::random_ints({40}, 6, -1, 5000);
  support::expect_same_on_any_threads([&](Stream& stream) {
    Result out = run(stream, logits, targets, 5000);
    return support::tensors(std::move(out.losses), std::move(out.dlogits));
  });
}

TEST(CrossEntropy, SaysWhatIsWrong) {
  Stream stream{Device{}};
  const Tensor logits(DType::kF32, {2, 8});
  support::expect_error(
      [&] {
        run(stream, logits, from_ints({0, 6}), 6);
      },
      "cross_entropy: token 1 has target 6, expected at most 5");
  support::expect_error(
      [&] {
        run(stream, logits, from_ints({0, 6}), 9);
      },
      "cross_entropy: vocabulary is 9, expected 1 to columns = 8");
  support::expect_error([&] { run(stream, logits, from_ints({0}), 8); },
                        "cross_entropy: targets is i32 [1], expected i32 [tokens] = [2]");
}

}  // namespace
}  // namespace tessera
