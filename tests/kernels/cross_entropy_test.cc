#include "kernels/cross_entropy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tests/reference/complex_step.h"
#include "tests/reference/cross_entropy.h"
#include "tests/support/compare.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using support::from_doubles;
using support::from_ints;
using support::plan_view;
using support::random_tensor;
using support::Tensor;
using support::to_doubles;

struct Result {
  Tensor losses;
  Tensor dlogits;
  Tensor merged;
};

/// Columns [first, first + count) of a matrix.
Tensor columns_of(const Tensor& x, int64_t first, int64_t count) {
  const int64_t columns = x.shape()[1];
  const std::vector<double> all = to_doubles(x);
  std::vector<double> part;
  for (int64_t row = 0; row < x.shape()[0]; ++row) {
    const auto begin = all.begin() + row * columns + first;
    part.insert(part.end(), begin, begin + count);
  }
  return from_doubles(x.dtype(), {x.shape()[0], count}, part);
}

/// As on ranks that hold columns [bounds[i], bounds[i + 1]) of the logits; dlogits put together.
Result run_shards(Stream& stream, const Tensor& logits, const Tensor& targets, int64_t vocabulary,
                  float scale, const std::vector<int64_t>& bounds) {
  const int64_t tokens = logits.shape()[0];
  const int64_t columns = logits.shape()[1];
  const auto shards = static_cast<int64_t>(bounds.size()) - 1;
  const Tensor stats(DType::kF32, {shards, tokens, kSoftmaxStats});
  Result out{Tensor(DType::kF32, {tokens}), Tensor(logits.dtype(), logits.shape()),
             Tensor(DType::kF32, {tokens, kSoftmaxStats})};
  std::vector<Tensor> parts;
  for (size_t shard = 0; shard + 1 < bounds.size(); ++shard) {
    parts.push_back(columns_of(logits, bounds[shard], bounds[shard + 1] - bounds[shard]));
    softmax_stats(
        stream,
        {.stats =
             stats.view().rows(static_cast<int64_t>(shard), 1).reshape({tokens, kSoftmaxStats}),
         .logits = parts[shard],
         .targets = targets,
         .vocabulary = vocabulary,
         .first = bounds[shard]});
  }
  merge_softmax_stats(
      stream, {.losses = out.losses, .merged = out.merged, .stats = stats, .targets = targets});
  std::vector<double> dlogits(static_cast<size_t>(tokens * columns));
  for (size_t shard = 0; shard + 1 < bounds.size(); ++shard) {
    const Tensor part = support::filled(logits.dtype(), parts[shard].shape(), 99);
    cross_entropy_gradient(stream, {.dlogits = part,
                                    .logits = parts[shard],
                                    .merged = out.merged,
                                    .targets = targets,
                                    .vocabulary = vocabulary,
                                    .scale = scale,
                                    .first = bounds[shard]});
    const std::vector<double> values = to_doubles(part);
    const int64_t width = part.shape()[1];
    for (int64_t row = 0; row < tokens; ++row) {
      std::copy_n(values.begin() + row * width, width,
                  dlogits.begin() + row * columns + bounds[shard]);
    }
  }
  out.dlogits = from_doubles(logits.dtype(), logits.shape(), dlogits);
  return out;
}

Result run(Stream& stream, const Tensor& logits, const Tensor& targets, int64_t vocabulary,
           float scale = 1) {
  return run_shards(stream, logits, targets, vocabulary, scale, {0, logits.shape()[1]});
}

/// Losses and gradient of 7 tokens against float64.
void check_against_reference(DType dtype, int64_t columns, int64_t vocabulary,
                             const std::vector<int64_t>& bounds) {
  constexpr float kScale = 0.125f;
  Stream stream{support::device(), 2};
  const auto last = static_cast<int32_t>(vocabulary - 1);
  const Tensor targets = from_ints({3, -1, 0, last, -100, 7, last / 2});
  const auto words = static_cast<size_t>(vocabulary);
  const Tensor logits = random_tensor(dtype, {7, columns}, 1, 3);
  const Result out = run_shards(stream, logits, targets, vocabulary, kScale, bounds);
  support::expect_close(out.losses,
                        reference::cross_entropy(to_doubles(logits), to_doubles(targets), words),
                        support::tolerance(DType::kF32), "losses");
  const std::vector<double> scales(7, kScale);
  const auto gradient = reference::complex_step_gradient(to_doubles(logits), [&](const auto& at) {
    return reference::weighted_sum(scales,
                                   reference::cross_entropy(at, to_doubles(targets), words));
  });
  support::expect_close(out.dlogits, gradient, support::tolerance(dtype), "dlogits");
}

TEST(CrossEntropy, MatchesTheReferenceAndItsGradient) {
  for (const DType dtype : support::dtypes()) {
    for (const int64_t vocabulary : {21, 32, 37}) {
      SCOPED_TRACE(concat(name_of(dtype), " vocabulary ", vocabulary));
      check_against_reference(dtype, 40, vocabulary, {0, 40});
    }
  }
}

TEST(CrossEntropy, ShardsMatchTheReferenceAndItsGradient) {
  const std::vector<std::vector<int64_t>> cases{
      {0, 257},         {0, 100, 257},      {0, 3, 4, 257},     {0, 65, 130, 195, 257},
      {0, 0, 129, 257}, {0, 128, 128, 257}, {0, 200, 257, 257},
  };
  for (const DType dtype : support::dtypes()) {
    for (size_t i = 0; i < cases.size(); ++i) {
      SCOPED_TRACE(concat(name_of(dtype), " case ", i));
      check_against_reference(dtype, 257, 257, cases[i]);
    }
    // Padding at the end of the last shard, and a shard that is nothing else.
    check_against_reference(dtype, 272, 257, {0, 68, 136, 204, 272});
    check_against_reference(dtype, 272, 257, {0, 130, 260, 272});
  }
}

// A hit is a target that no logit of any shard is above, ties included; padding does not count.
TEST(CrossEntropy, HitsAreTargetsThatNothingIsAbove) {
  Stream stream{support::device(), 2};
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<double> rows{0,  3,    1,    2,  9,  //
                                 0,  3,    1,    2,  9,  //
                                 4,  1,    0,    4,  9,  //
                                 -5, -7,   -6,   -8, 9,  //
                                 0,  0,    0,    0,  9,  //
                                 0,  kNan, 0,    0,  9,  //
                                 -2, -3,   -2.5, -1, 9};
  const Tensor logits = from_doubles(DType::kF32, {7, 5}, rows);
  const Tensor targets = from_ints({1, 3, 3, 0, -1, 1, 3});
  for (const auto& bounds : {std::vector<int64_t>{0, 5}, {0, 2, 5}, {0, 3, 3, 5}}) {
    const auto shards = static_cast<int64_t>(bounds.size()) - 1;
    const Tensor stats(DType::kF32, {shards, 7, kSoftmaxStats});
    for (int64_t s = 0; s < shards; ++s) {
      const auto i = static_cast<size_t>(s);
      const Tensor part = columns_of(logits, bounds[i], bounds[i + 1] - bounds[i]);
      softmax_stats(stream, {.stats = stats.view().rows(s, 1).reshape({7, kSoftmaxStats}),
                             .logits = part,
                             .targets = targets,
                             .vocabulary = 4,
                             .first = bounds[i]});
    }
    const Tensor losses(DType::kF32, {7});
    const Tensor merged(DType::kF32, {7, kSoftmaxStats});
    const Tensor hits = support::filled(DType::kF32, {7}, 99);
    merge_softmax_stats(
        stream,
        {.losses = losses, .merged = merged, .stats = stats, .targets = targets, .hits = hits});
    EXPECT_EQ(to_doubles(hits), (std::vector<double>{1, 0, 1, 1, 0, 0, 1}));
  }
}

TEST(CrossEntropy, ShardsOfAnySizeAgreeAcrossBlocks) {
  Stream stream{support::device()};
  Tensor logits = random_tensor(DType::kF32, {3, 9000}, 8, 2);
  // Maxima that rise from block to block, by a little and by more than exp can hold.
  for (size_t v = 0; v < 9000; ++v) {
    logits.as<float>()[v] += static_cast<float>(v / 2048);
    logits.as<float>()[9000 + v] += 200 * static_cast<float>(v / 2048);
  }
  const Tensor targets = from_ints({8000, 8999, 17});
  const auto expected = reference::cross_entropy(to_doubles(logits), to_doubles(targets), 9000);
  for (const auto& bounds : {std::vector<int64_t>{0, 9000}, {0, 5000, 9000}, {0, 1, 2, 9000}}) {
    const Result out = run_shards(stream, logits, targets, 9000, 1, bounds);
    support::expect_close(out.losses, expected, support::tolerance(DType::kF32), "losses");
    const auto dlogits = to_doubles(out.dlogits);
    for (int64_t t = 0; t < 3; ++t) {
      const auto row = dlogits.begin() + t * 9000;
      EXPECT_NEAR(std::accumulate(row, row + 9000, 0.0), 0.0, 1e-5) << t;
    }
  }
}

TEST(CrossEntropy, PaddingAndIgnoredTokensGetExactZeros) {
  Stream stream{support::device()};
  Tensor logits = random_tensor(DType::kF32, {2, 8}, 2);
  for (size_t v = 5; v < 8; ++v) logits.as<float>()[v] = 1e30f;  // padding has no probability
  const Result out = run(stream, logits, from_ints({4, -1}), 5);
  const auto dlogits = to_doubles(out.dlogits);
  for (size_t i = 5; i < 16; ++i) EXPECT_EQ(dlogits[i], 0.0) << i;
  EXPECT_LT(out.losses.as<float>()[0], 10.0f);
  EXPECT_EQ(out.losses.as<float>()[1], 0.0f);
}

TEST(CrossEntropy, LargeLogitsAreSafe) {
  Stream stream{support::device()};
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
  Stream stream{support::device()};
  const std::vector<double> row{0, -14, -200, -std::numeric_limits<double>::infinity()};
  const Result out = run(stream, from_doubles(DType::kF32, {1, 4}, row), from_ints({0}), 4);
  EXPECT_NEAR(out.losses.as<float>()[0], std::log1p(std::exp(-14.0)), 1e-7);
  EXPECT_EQ(out.dlogits.as<float>()[3], 0.0f);
}

TEST(CrossEntropy, NanAndInfinityReachTheLoss) {
  Stream stream{support::device()};
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    for (const size_t at : {0u, 15u, 17u}) {
      std::vector<double> row(18, 0.5);
      row[at] = bad;
      const Result out = run(stream, from_doubles(DType::kF32, {1, 18}, row), from_ints({3}), 18);
      EXPECT_FALSE(std::isfinite(out.losses.as<float>()[0])) << bad << " at " << at;
    }
  }
}

TEST(CrossEntropy, NanAndInfinityOfAnyShardReachTheLoss) {
  Stream stream{support::device()};
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    for (const size_t at : {0u, 3u, 7u, 17u}) {  // 3 is the target
      std::vector<double> row(18, 0.5);
      row[at] = bad;
      const Result out = run_shards(stream, from_doubles(DType::kF32, {1, 18}, row), from_ints({3}),
                                    18, 1, {0, 6, 9, 18});
      EXPECT_FALSE(std::isfinite(out.losses.as<float>()[0])) << bad << " at " << at;
    }
  }
}

TEST(CrossEntropy, AShardWithoutProbabilityCostsNothing) {
  Stream stream{support::device()};
  const double none = -std::numeric_limits<double>::infinity();
  const Tensor logits =
      from_doubles(DType::kF32, {2, 4}, std::vector<double>{none, none, 1, 1, 2, 2, none, none});
  const Result out = run_shards(stream, logits, from_ints({2, 2}), 4, 1, {0, 2, 4});
  EXPECT_NEAR(out.losses.as<float>()[0], std::log(2.0), 1e-6);
  EXPECT_EQ(out.losses.as<float>()[1], std::numeric_limits<float>::infinity());
  support::expect_close(out.dlogits, std::vector<double>{0, 0, -0.5, 0.5, 0.5, 0.5, -1, 0}, 1e-12,
                        "dlogits");
}

TEST(CrossEntropy, StatsOfAnEmptyOrIgnoredShardAreNeutral) {
  Stream stream{support::device()};
  const Tensor empty(DType::kF32, {2, kSoftmaxStats});
  softmax_stats(stream, {.stats = empty,
                         .logits = Tensor(DType::kBF16, {2, 0}),
                         .targets = from_ints({0, -1}),
                         .vocabulary = 4,
                         .first = 4});
  for (const size_t t : {0u, 1u}) {
    EXPECT_EQ(empty.as<float>()[3 * t + 1], 0.0f);
    EXPECT_EQ(empty.as<float>()[3 * t + 2], -std::numeric_limits<float>::infinity());
  }
}

TEST(CrossEntropy, OutputsMayOverwriteInputs) {
  Stream stream{support::device()};
  const Tensor targets = from_ints({1, 5, -1});
  for (const DType dtype : support::dtypes()) {
    const Tensor logits = random_tensor(dtype, {3, 20}, 4);
    const Result apart = run(stream, logits, targets, 20, 0.5f);
    const Tensor losses(DType::kF32, {3});
    const Tensor stats(DType::kF32, {1, 3, kSoftmaxStats});
    const TensorView merged = stats.view().reshape({3, kSoftmaxStats});
    softmax_stats(stream,
                  {.stats = merged, .logits = logits, .targets = targets, .vocabulary = 20});
    merge_softmax_stats(stream,
                        {.losses = losses, .merged = merged, .stats = stats, .targets = targets});
    cross_entropy_gradient(stream, {.dlogits = logits,
                                    .logits = logits,
                                    .merged = merged,
                                    .targets = targets,
                                    .vocabulary = 20,
                                    .scale = 0.5f});
    support::expect_same_bits(losses, apart.losses, "losses");
    support::expect_same_bits(merged, apart.merged, "merged over stats");
    support::expect_same_bits(logits, apart.dlogits, "dlogits over logits");
  }
}

TEST(CrossEntropy, GivesTheSameBitsOnAnyNumberOfThreads) {
  const Tensor logits = random_tensor(DType::kBF16, {40, 5000}, 5, 4);
  const Tensor targets = support::random_ints({40}, 6, -1, 5000);
  support::expect_same_on_any_threads([&](Stream& stream) {
    Result out = run_shards(stream, logits, targets, 5000, 1, {0, 1700, 5000});
    return support::tensors(std::move(out.losses), std::move(out.dlogits), std::move(out.merged));
  });
}

TEST(CrossEntropy, RefusesTargetsBeyondTheVocabulary) {
  Stream stream{Device{}};
  const Tensor logits(DType::kF32, {2, 8});
  try {
    run(stream, logits, from_ints({0, 6}), 6);
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadData);
    EXPECT_NE(std::string(e.what()).find(
                  "cross_entropy: token 1 has target 6, expected at most 5; use data of"),
              std::string::npos)
        << e.what();
  }
}

TensorView f32(Shape shape) {
  return plan_view(DType::kF32, shape);
}
TensorView i32(Shape shape) {
  return plan_view(DType::kI32, shape);
}

TEST(CrossEntropy, StatsSayWhatIsWrong) {
  Stream stream(Device{DeviceKind::kPlan});
  const SoftmaxStats good{
      .stats = f32({2, 3}), .logits = f32({2, 8}), .targets = i32({2}), .vocabulary = 9};
  softmax_stats(stream, good);
  const auto expect = [&](auto change, const std::string& sentence) {
    SoftmaxStats bad = good;
    change(bad);
    support::expect_error([&] { softmax_stats(stream, bad); }, sentence);
  };
  expect(
      [](SoftmaxStats& a) {
        a.logits = i32({2, 8});
      },
      "softmax_stats: logits is i32 [2, 8], expected f32 or bf16 [tokens, columns]");
  expect(
      [](SoftmaxStats& a) {
        a.stats = f32({2, 2});
      },
      "softmax_stats: stats is f32 [2, 2], expected f32 [tokens, 3] = [2, 3]");
  expect([](SoftmaxStats& a) { a.targets = i32({1}); },
         "softmax_stats: targets is i32 [1], expected i32 [tokens] = [2]");
  expect([](SoftmaxStats& a) { a.vocabulary = 0; },
         "softmax_stats: vocabulary is 0, expected at least 1");
  expect([](SoftmaxStats& a) { a.first = -1; }, "softmax_stats: first is -1, expected at least 0");
}

TEST(CrossEntropy, MergeSaysWhatIsWrong) {
  Stream stream(Device{DeviceKind::kPlan});
  const MergeSoftmaxStats good{
      .losses = f32({2}), .merged = f32({2, 3}), .stats = f32({4, 2, 3}), .targets = i32({2})};
  merge_softmax_stats(stream, good);
  const auto expect = [&](auto change, const std::string& sentence) {
    MergeSoftmaxStats bad = good;
    change(bad);
    support::expect_error([&] { merge_softmax_stats(stream, bad); }, sentence);
  };
  expect(
      [](MergeSoftmaxStats& a) {
        a.stats = f32({2, 3});
      },
      "merge_softmax_stats: stats is [2, 3], expected [shards, tokens, 3] of at least 1 shard");
  expect(
      [](MergeSoftmaxStats& a) {
        a.stats = f32({0, 2, 3});
      },
      "merge_softmax_stats: stats is [0, 2, 3], expected [shards, tokens, 3] of at least 1");
  expect(
      [](MergeSoftmaxStats& a) {
        a.stats = f32({4, 2, 2});
      },
      "merge_softmax_stats: stats is f32 [4, 2, 2], expected f32 [shards, tokens, 3] = [4, 2, 3]");
  expect(
      [](MergeSoftmaxStats& a) {
        a.merged = f32({3, 3});
      },
      "merge_softmax_stats: merged is f32 [3, 3], expected f32 [tokens, 3] = [2, 3]");
  expect([](MergeSoftmaxStats& a) { a.losses = f32({3}); },
         "merge_softmax_stats: losses is f32 [3], expected f32 [tokens] = [2]");
  expect([](MergeSoftmaxStats& a) { a.targets = f32({2}); },
         "merge_softmax_stats: targets is f32 [2], expected i32 [tokens] = [2]");
}

TEST(CrossEntropy, GradientSaysWhatIsWrong) {
  Stream stream(Device{DeviceKind::kPlan});
  const CrossEntropyGradient good{.dlogits = f32({2, 8}),
                                  .logits = f32({2, 8}),
                                  .merged = f32({2, 3}),
                                  .targets = i32({2}),
                                  .vocabulary = 8,
                                  .scale = 1};
  cross_entropy_gradient(stream, good);
  const auto expect = [&](auto change, const std::string& sentence) {
    CrossEntropyGradient bad = good;
    change(bad);
    support::expect_error([&] { cross_entropy_gradient(stream, bad); }, sentence);
  };
  expect(
      [](CrossEntropyGradient& a) {
        a.dlogits = f32({2, 7});
      },
      "cross_entropy_gradient: dlogits is [2, 7], expected [tokens, columns] = [2, 8]");
  expect([](CrossEntropyGradient& a) { a.merged = f32({2}); },
         "cross_entropy_gradient: merged is f32 [2], expected f32 [tokens, 3] = [2, 3]");
  expect([](CrossEntropyGradient& a) { a.targets = i32({3}); },
         "cross_entropy_gradient: targets is i32 [3], expected i32 [tokens] = [2]");
  expect([](CrossEntropyGradient& a) { a.vocabulary = 0; },
         "cross_entropy_gradient: vocabulary is 0, expected at least 1");
  expect([](CrossEntropyGradient& a) { a.first = -2; },
         "cross_entropy_gradient: first is -2, expected at least 0");
  const Tensor memory(DType::kF32, {2, 8});
  expect(
      [&](CrossEntropyGradient& a) {
        a.logits = memory;
        a.dlogits = {memory.view().data(), DType::kBF16, {2, 8}, support::device()};
      },
      "cross_entropy_gradient: dlogits is bf16 and aliases logits in f32");
}

}  // namespace
}  // namespace tessera
