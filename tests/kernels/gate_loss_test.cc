#include "kernels/gate_loss.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "tests/reference/complex_step.h"
#include "tests/support/choices.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

using reference::Complex;
using support::Segments;
using support::Selection;
using support::Tensor;

constexpr int64_t kGroups = 2;
constexpr int64_t kHeads = 3;

struct Problem {
  Problem(const std::vector<int64_t>& lengths, const BlockRule& rule)
      : segments(lengths, 16),
        selection(support::choose_at_random(segments, rule, kGroups, 5)),
        block_lse(support::random_tensor(DType::kF32,
                                         {kGroups, segments.tokens(), kHeads, rule.kept}, 6, 2)) {
    // Unused slots are not written by the attention: whatever is there must not matter.
    for (int64_t row = 0; row < kGroups * segments.tokens() * kHeads; ++row) {
      const int64_t token = row / kHeads;
      for (int64_t s = selection.count(0, token); s < rule.kept; ++s) {
        block_lse.as<float>()[static_cast<size_t>(row * rule.kept + s)] =
            std::numeric_limits<float>::quiet_NaN();
      }
    }
  }

  GateLoss arguments(const Tensor& losses, const Tensor& dscores) const {
    return {.losses = losses.view(),
            .dscores = dscores.view(),
            .selection = selection.view(),
            .block_lse = block_lse.view(),
            .kl_coefficient = 0.3f,
            .entropy_coefficient = 0.05f,
            .z_coefficient = 0.01f};
  }

  Segments segments;
  Selection selection;
  Tensor block_lse;
};

struct Result {
  Tensor losses;
  Tensor dscores;
};

/// Losses start as ones, dscores as garbage.
Result run(Stream& stream, const Problem& p) {
  Result out{support::filled(DType::kF32, {3}, 1),
             support::filled(DType::kF32, p.selection.view().scores.shape(), 77)};
  gate_loss(stream, p.arguments(out.losses, out.dscores));
  return out;
}

/// Losses and gradient of all rows by the definition.
void expect_definition(const Problem& p, const Result& found) {
  const std::vector<double> coefficients{0.3, 0.05, 0.01};
  const int64_t kept = p.selection.kept();
  const std::vector<double> all_lse = support::to_doubles(p.block_lse);
  std::vector<double> losses{1, 1, 1};
  std::vector<double> dscores;
  for (int64_t row = 0; row < kGroups * p.segments.tokens(); ++row) {
    const int64_t count = p.selection.count(0, row);
    std::vector<double> dz(static_cast<size_t>(kept + 1));
    if (count >= 2) {
      const auto scores = p.selection.row_of_scores(0, row);
      const std::vector<double> z(scores.begin(), scores.begin() + count);
      std::vector<double> lse;
      for (int64_t h = 0; h < kHeads; ++h) {
        const auto of_head = reference::row_of(all_lse, row * kHeads + h, kept);
        lse.insert(lse.end(), of_head.begin(), of_head.begin() + count);
      }
      const std::vector<double> target = reference::gate_target(lse, count);
      const std::vector<double> of_row = reference::gate_losses(z, target);
      for (size_t i = 0; i < 3; ++i) losses[i] += coefficients[i] * of_row[i];
      const auto gradient = reference::complex_step_gradient(z, [&](const auto& x) {
        return reference::weighted_sum(coefficients, reference::gate_losses(x, target));
      });
      std::ranges::copy(gradient, dz.begin());
    }
    dscores.insert(dscores.end(), dz.begin(), dz.end());
  }
  support::expect_close(found.dscores, dscores, 1e-11, "dscores");
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_NEAR(found.losses.as<float>()[i] / losses[i], 1, 1e-6) << "loss " << i;
  }
  for (size_t i = 0; i < dscores.size(); ++i) {
    EXPECT_TRUE(dscores[i] != 0 || found.dscores.as<float>()[i] == 0) << i;
  }
}

TEST(GateLoss, IsTheDefinitionAndItsGradient) {
  Stream stream{support::device(), 2};
  for (const int64_t kept : {1, 2, 5, 40}) {
    const Problem p({0, 37, 190, 1}, {.sink_blocks = 1, .window_blocks = 1, .kept = kept});
    expect_definition(p, run(stream, p));
  }
}

TEST(GateLoss, ReadsItsCoefficientsWhereTheyAreGiven) {
  Stream stream{support::device(), 2};
  const Problem p({37, 190}, {.sink_blocks = 1, .window_blocks = 1, .kept = 4});
  const Result expected = run(stream, p);
  const Result found{support::filled(DType::kF32, {3}, 1),
                     Tensor(DType::kF32, expected.dscores.shape())};
  const Tensor coefficients =
      support::from_doubles(DType::kF32, {3}, std::vector<double>{0.3, 0.05, 0.01});
  GateLoss a = p.arguments(found.losses, found.dscores);
  a.kl_coefficient = a.entropy_coefficient = a.z_coefficient = 9;
  a.coefficients = coefficients.view();
  gate_loss(stream, a);
  stream.synchronize();
  support::expect_same_bits(found.losses.view(), expected.losses.view(), "losses");
  support::expect_same_bits(found.dscores.view(), expected.dscores.view(), "dscores");
}

TEST(GateLoss, WithoutTwoChoicesNothingIsLost) {
  Stream stream{support::device()};
  const Problem p({32, 30}, {.sink_blocks = 0, .window_blocks = 1, .kept = 4});
  const Result found = run(stream, p);
  for (const float loss : found.losses.as<float>()) EXPECT_EQ(loss, 1);
  EXPECT_EQ(count_gate_rows(p.segments.starts().as<int32_t>(), 16,
                            {.sink_blocks = 0, .window_blocks = 1, .kept = 4}),
            0);
}

TEST(GateLoss, BlocksThatNoHeadLooksAtCostNothingInfinite) {
  Stream stream{support::device()};
  Problem p({190}, {.sink_blocks = 1, .window_blocks = 1, .kept = 3});
  const int64_t kept = 3;
  for (int64_t row = 0; row < kGroups * 190 * kHeads; ++row) {
    p.block_lse.as<float>()[static_cast<size_t>(row * kept + row % 2)] = -500;
  }
  expect_definition(p, run(stream, p));
}

TEST(GateLoss, AnyNumberOfThreadsGivesTheSameBits) {
  const Problem p({700, 333}, {.sink_blocks = 1, .window_blocks = 1, .kept = 4});
  support::expect_same_on_any_threads([&](Stream& stream) {
    Result found = run(stream, p);
    return support::tensors(std::move(found.losses), std::move(found.dscores));
  });
}

TEST(GateLoss, SaysWhatIsWrong) {
  const Problem p({100}, {.sink_blocks = 0, .window_blocks = 1, .kept = 2});
  Stream stream{support::device()};
  const Result out = run(stream, p);
  const auto expect = [&](const std::function<void(GateLoss&)>& change,
                          const std::string& sentence) {
    GateLoss wrong = p.arguments(out.losses, out.dscores);
    change(wrong);
    support::expect_error([&] { gate_loss(stream, wrong); }, sentence);
  };
  expect([](auto& x) { x.coefficients = support::plan_view(DType::kF32, {2}); },
         "gate_loss: coefficients is f32 [2], expected f32 [kl, entropy, z] = [3]");
  expect([](auto& x) { x.losses = support::plan_view(DType::kF32, {2}); },
         "gate_loss: losses is f32 [2], expected f32 [kl, entropy, z] = [3]");
  expect(
      [](auto& x) {
        x.dscores = support::plan_view(DType::kF32, {2, 100, 2});
      },
      "gate_loss: dscores is f32 [2, 100, 2], expected f32 "
      "[groups, tokens, k + 1] = [2, 100, 3]");
  expect(
      [](auto& x) {
        x.block_lse = support::plan_view(DType::kF32, {2, 100, 3, 3});
      },
      "gate_loss: block_lse is f32 [2, 100, 3, 3], expected f32 "
      "[groups, tokens, g, k] = [2, 100, 3, 2]");
  expect(
      [](auto& x) {
        x.block_lse = support::plan_view(DType::kF32, {2, 100, 3});
      },
      "gate_loss: block_lse is [2, 100, 3], expected [groups, tokens, g, k]");
}

}  // namespace
}  // namespace tessera
