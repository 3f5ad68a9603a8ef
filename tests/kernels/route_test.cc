#include "kernels/route.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "tests/reference/complex_step.h"
#include "tests/reference/route.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using reference::Complex;
using support::expect_close;
using support::expect_error;
using support::filled;
using support::from_doubles;
using support::from_ints;
using support::plan_view;
using support::random_tensor;
using support::Tensor;
using support::to_doubles;

constexpr RouterMode kModes[] = {RouterMode::kSoftmaxTopK, RouterMode::kSoftmax,
                                 RouterMode::kSoftmaxNormalized, RouterMode::kSigmoid};
constexpr float kScale = 2.5f;
const double kTolerance = support::tolerance(DType::kF32);

float scale_of(RouterMode mode) {
  return mode == RouterMode::kSigmoid ? kScale : 1;
}

std::string name_of_mode(RouterMode mode) {
  return concat("mode ", static_cast<int>(mode));
}

template <class T>
std::vector<T> part(const std::vector<T>& x, int64_t row, int64_t length) {
  return {x.begin() + row * length, x.begin() + (row + 1) * length};
}

struct Routed {
  Tensor experts, weights, counts;
};

Routed route(RouterMode mode, const Tensor& logits, int64_t k, int64_t scopes = 1,
             TensorView bias = {}, int threads = 1, ConstTensorView scope_starts = {},
             Device device = support::device()) {
  const int64_t tokens = logits.shape()[0];
  Routed out{Tensor(DType::kI32, {tokens, k}), Tensor(DType::kF32, {tokens, k}),
             filled(DType::kF32, {scopes, logits.shape()[1]}, 7)};
  Stream stream(device, threads);
  route_forward(stream, {.experts = out.experts,
                         .weights = out.weights,
                         .counts = out.counts,
                         .logits = logits,
                         .mode = mode,
                         .scale = scale_of(mode),
                         .bias = bias,
                         .scope_starts = scope_starts});
  return out;
}

std::vector<int32_t> ints(const Tensor& x) {
  const auto values = x.as<int32_t>();
  return {values.begin(), values.end()};
}

void check_forward(RouterMode mode, int64_t tokens, int64_t experts, int64_t k, bool biased) {
  const std::string what =
      concat(name_of_mode(mode), ", ", tokens, " tokens, ", experts, " experts, k ", k);
  const Tensor logits = random_tensor(DType::kF32, {tokens, experts}, 11, 2);
  const Tensor bias = random_tensor(DType::kF32, {experts}, 12, 0.2);
  const Routed found = route(mode, logits, k, 1, biased ? bias.view() : TensorView{});
  std::vector<int32_t> chosen;
  std::vector<double> weights;
  std::vector<double> counts(static_cast<size_t>(experts));
  for (int64_t t = 0; t < tokens; ++t) {
    const std::vector<double> row = part(to_doubles(logits), t, experts);
    const auto best =
        reference::choose_experts(mode, row, biased ? to_doubles(bias) : std::vector<double>{}, k);
    for (const double w : reference::combine_weights(mode, scale_of(mode), row, best)) {
      weights.push_back(w);
    }
    for (const int32_t e : best) ++counts[static_cast<size_t>(e)];
    chosen.insert(chosen.end(), best.begin(), best.end());
  }
  EXPECT_EQ(ints(found.experts), chosen) << what;
  expect_close(found.weights, weights, kTolerance, what);
  EXPECT_EQ(to_doubles(found.counts), counts) << what;
}

TEST(Route, AgreesWithFloat64) {
  for (const RouterMode mode : kModes) {
    check_forward(mode, 1, 1, 1, false);
    check_forward(mode, 3, 2, 2, false);
    check_forward(mode, 70, 8, 1, false);
    check_forward(mode, 130, 37, 3, false);
    check_forward(mode, 5, 16, 16, false);
    check_forward(mode, 9, 256, 8, false);
  }
  check_forward(RouterMode::kSigmoid, 130, 37, 3, true);
  check_forward(RouterMode::kSigmoid, 3, kMaxExperts, 20, true);
}

TEST(Route, GivesTiesToTheLowestExpert) {
  for (const RouterMode mode : kModes) {
    const Tensor logits = from_doubles(DType::kF32, {3, 5},
                                       std::vector<double>{0, 0, 0, 0, 0,  //
                                                           1, 3, 2, 3, 2,  //
                                                           -9, -9, 4, -9, 4});
    EXPECT_EQ(ints(route(mode, logits, 3).experts),
              (std::vector<int32_t>{0, 1, 2, 1, 3, 2, 2, 4, 0}))
        << name_of_mode(mode);
  }
}

TEST(Route, SaturatedSigmoidsTieAndVanishingOnesStayFinite) {
  const Tensor logits =
      from_doubles(DType::kF32, {2, 3}, std::vector<double>{40, 50, 60, -200, -150, -180});
  const Routed found = route(RouterMode::kSigmoid, logits, 2);
  EXPECT_EQ(ints(found.experts), (std::vector<int32_t>{0, 1, 0, 1}));
  EXPECT_EQ(to_doubles(found.weights), (std::vector<double>{1.25, 1.25, 0, 0}));
}

TEST(Route, BiasMovesTheChoiceAndNotTheWeights) {
  const Tensor logits = from_doubles(DType::kF32, {1, 3}, std::vector<double>{1, 0.9, 0.8});
  const Tensor bias = from_doubles(DType::kF32, {3}, std::vector<double>{-1, 0, 0});
  const Routed found = route(RouterMode::kSigmoid, logits, 2, 1, bias);
  EXPECT_EQ(ints(found.experts), (std::vector<int32_t>{1, 2}));
  const std::vector<int32_t> chosen{1, 2};
  expect_close(found.weights,
               reference::combine_weights(RouterMode::kSigmoid, kScale, to_doubles(logits), chosen),
               kTolerance, "weights");
}

TEST(Route, NanLogitsGiveDistinctExpertsAndNanWeights) {
  const double nan = std::nan("");
  const double infinity = std::numeric_limits<double>::infinity();
  for (const RouterMode mode : kModes) {
    const Tensor logits = from_doubles(
        DType::kF32, {4, 4},
        std::vector<double>{nan, 1, nan, 2, nan, nan, nan, nan, infinity, nan, -infinity, nan,  //
                            1, 2, 3, 4});
    const Routed found = route(mode, logits, 3);
    const std::vector<int32_t> experts = ints(found.experts);
    for (int64_t t = 0; t < 4; ++t) {
      const auto chosen = part(experts, t, 3);
      EXPECT_EQ(std::set<int32_t>(chosen.begin(), chosen.end()).size(), 3u);
      for (const int32_t e : chosen) EXPECT_TRUE(e >= 0 && e < 4) << e;
      for (const double w : part(to_doubles(found.weights), t, 3)) EXPECT_EQ(std::isnan(w), t < 3);
    }
    EXPECT_EQ(part(experts, 0, 3), (std::vector<int32_t>{3, 1, 0})) << name_of_mode(mode);
    EXPECT_EQ(part(experts, 1, 3), (std::vector<int32_t>{0, 1, 2})) << name_of_mode(mode);
  }
}

TEST(Route, CountsByScope) {
  const Tensor logits = from_doubles(DType::kF32, {4, 3},
                                     std::vector<double>{9, 8, 0,  //
                                                         9, 0, 8,  //
                                                         0, 8, 9,  //
                                                         0, 9, 8});
  const Routed found = route(RouterMode::kSoftmax, logits, 2, 2);
  EXPECT_EQ(to_doubles(found.counts), (std::vector<double>{2, 1, 1, 0, 2, 2}));
}

void check_backward(RouterMode mode, int64_t tokens, int64_t experts, int64_t k) {
  const Tensor logits = random_tensor(DType::kF32, {tokens, experts}, 21, 2);
  const Tensor dweights = random_tensor(DType::kF32, {tokens, k}, 22);
  const Tensor dlogits = filled(DType::kF32, {tokens, experts}, 1e6);
  const Routed forward = route(mode, logits, k);
  Stream stream(support::device());
  route_backward(stream, {.dlogits = dlogits,
                          .dweights = dweights,
                          .logits = logits,
                          .experts = forward.experts,
                          .mode = mode,
                          .scale = scale_of(mode)});
  const auto chosen = ints(forward.experts);
  const auto gradient =
      reference::complex_step_gradient(to_doubles(logits), [&](const std::vector<Complex>& at) {
        Complex loss = 0;
        for (int64_t t = 0; t < tokens; ++t) {
          loss += reference::weighted_sum<Complex>(
              part(to_doubles(dweights), t, k),
              reference::combine_weights(mode, scale_of(mode), part(at, t, experts),
                                         part(chosen, t, k)));
        }
        return loss;
      });
  expect_close(dlogits, gradient, kTolerance,
               concat(name_of_mode(mode), ", ", experts, " experts, k ", k));
}

TEST(Route, BackwardIsTheGradientOfTheWeights) {
  for (const RouterMode mode : kModes) {
    check_backward(mode, 3, 5, 2);
    check_backward(mode, 4, 19, 4);
    check_backward(mode, 2, 6, 6);
  }
  check_backward(RouterMode::kSoftmax, 3, 7, 1);
}

TEST(Route, NormalisedWeightsOfOneExpertHaveNoGradient) {
  for (const RouterMode mode : {RouterMode::kSoftmaxTopK, RouterMode::kSoftmaxNormalized}) {
    const Tensor logits = random_tensor(DType::kF32, {3, 5}, 31);
    const Routed forward = route(mode, logits, 1);
    EXPECT_EQ(to_doubles(forward.weights), std::vector<double>(3, 1.0));
    const Tensor dlogits(DType::kF32, {3, 5});
    Stream stream(support::device());
    route_backward(stream, {.dlogits = dlogits,
                            .dweights = filled(DType::kF32, {3, 1}, 1),
                            .logits = logits,
                            .experts = forward.experts,
                            .mode = mode});
    for (const double value : to_doubles(dlogits)) EXPECT_EQ(value, 0);
  }
}

TEST(Route, BackwardRefusesAnExpertThatDoesNotExist) {
  Stream stream(Device{});
  expect_error(
      [&] {
        const Tensor experts = support::from_ints({0, 3});
        route_backward(stream, {.dlogits = Tensor(DType::kF32, {1, 3}),
                                .dweights = Tensor(DType::kF32, {1, 2}),
                                .logits = Tensor(DType::kF32, {1, 3}),
                                .experts = experts.view().reshape({1, 2}),
                                .mode = RouterMode::kSoftmax});
      },
      "route_backward: experts has 3, expected 0 to 2");
}

struct LossCase {
  int64_t tokens, experts, scopes;
  int64_t scope_tokens;
  std::vector<int32_t> starts = {};  // empty: the scopes are equal
};

void check_losses(RouterMode mode, const LossCase& test) {
  constexpr int64_t kChosen = 2;
  constexpr float kBalance = 0.7f;
  constexpr float kZ = 0.3f;
  const Tensor logits = random_tensor(DType::kF32, {test.tokens, test.experts}, 41, 2);
  const Tensor starts = from_ints(test.starts);
  const ConstTensorView given = test.starts.empty() ? ConstTensorView{} : starts.view();
  const Tensor counts =
      support::copy_of(route(mode, logits, kChosen, test.scopes, {}, 1, given).counts);
  for (float& count : counts.as<float>()) count += 3;  // of other ranks
  const Tensor losses = from_doubles(DType::kF32, {2}, std::vector<double>{5, 6});
  const Tensor dlogits = filled(DType::kF32, logits.shape(), 0.5);
  Stream stream(support::device());
  router_loss(stream, {.losses = losses,
                       .dlogits = dlogits,
                       .logits = logits,
                       .counts = counts,
                       .mode = mode,
                       .experts_per_token = kChosen,
                       .scope_tokens = test.scope_tokens,
                       .balance_coefficient = kBalance,
                       .z_coefficient = kZ,
                       .scope_starts = given});
  std::vector<int32_t> bounds = test.starts;
  for (int64_t s = 0; test.starts.empty() && s <= test.scopes; ++s) {
    bounds.push_back(static_cast<int32_t>(test.tokens / test.scopes * s));
  }
  const std::vector<size_t> scopes = reference::scopes_of_tokens(bounds);
  const auto expected = [&]<class T>(const std::vector<T>& at) {
    return reference::router_losses<T>(mode, at, to_doubles(counts), test.experts, scopes, kChosen,
                                       static_cast<double>(test.scope_tokens), kBalance, kZ);
  };
  const std::string what = concat(name_of_mode(mode), ", ", test.scopes, " scopes");
  const auto [balance, z] = expected(to_doubles(logits));
  expect_close(losses, std::vector<double>{5 + balance, 6 + z}, kTolerance, what);
  auto gradient = reference::complex_step_gradient(to_doubles(logits), [&](const auto& at) {
    const auto [balance_at, z_at] = expected(at);
    return balance_at + z_at;
  });
  auto added = to_doubles(dlogits);
  for (double& value : added) value -= 0.5;
  expect_close(added, gradient, 1e-10, what);  // 0.5 costs digits
}

TEST(RouterLoss, AgreesWithFloat64AndComplexStep) {
  for (const RouterMode mode : kModes) {
    check_losses(mode, {6, 5, 1, 6});
    check_losses(mode, {8, 19, 2, 4});
    check_losses(mode, {3, 4, 1, 12});  // a scope that other ranks hold the rest of
    check_losses(mode, {70, 3, 1, 70});
    check_losses(mode, {7, 5, 4, 9, {0, 0, 3, 3, 7}});  // uneven, two of them empty
    check_losses(mode, {70, 3, 3, 70, {0, 1, 66, 70}});
  }
}

TEST(RouterLoss, BalancedTokensCostTheCoefficient) {
  // Equal logits, equal counts: E sum f P = E * E * (1/E) * (1/E) = 1.
  const Tensor losses(DType::kF32, {2});
  Stream stream(support::device());
  router_loss(stream, {.losses = losses,
                       .dlogits = Tensor(DType::kF32, {8, 4}),
                       .logits = Tensor(DType::kF32, {8, 4}),
                       .counts = filled(DType::kF32, {1, 4}, 4),
                       .mode = RouterMode::kSoftmax,
                       .experts_per_token = 2,
                       .scope_tokens = 8,
                       .balance_coefficient = 0.01f,
                       .z_coefficient = 1});
  EXPECT_NEAR(losses.as<float>()[0], 0.01, 1e-8);
  EXPECT_NEAR(losses.as<float>()[1], std::log(4.0) * std::log(4.0), 1e-6);
}

TEST(BalanceBias, MovesTowardsTheMean) {
  const Tensor bias = from_doubles(DType::kF32, {4}, std::vector<double>{0, 1, -1, 0.5});
  const Tensor counts = from_doubles(DType::kF32, {4}, std::vector<double>{10, 0, 6, 8});
  Stream stream(support::device());
  balance_bias(stream, {.bias = bias, .counts = counts, .rate = 0.25f});
  EXPECT_EQ(to_doubles(bias), (std::vector<double>{-0.25, 1.25, -1, 0.25}));
}

TEST(Route, IsTheSameOnAnyNumberOfThreads) {
  const Tensor logits = random_tensor(DType::kF32, {1000, 16}, 51, 2);
  const Tensor dweights = random_tensor(DType::kF32, {1000, 2}, 52);
  support::expect_same_on_any_threads([&](Stream& stream) {
    const Tensor starts = from_ints({0, 1, 499, 499, 1000});
    Routed out =
        route(RouterMode::kSigmoid, logits, 2, 4, {}, stream.threads().threads(), starts.view());
    Tensor dlogits(DType::kF32, {1000, 16});
    Tensor losses(DType::kF32, {2});
    route_backward(stream, {.dlogits = dlogits,
                            .dweights = dweights,
                            .logits = logits,
                            .experts = out.experts,
                            .mode = RouterMode::kSigmoid});
    router_loss(stream, {.losses = losses,
                         .dlogits = dlogits,
                         .logits = logits,
                         .counts = out.counts,
                         .mode = RouterMode::kSigmoid,
                         .experts_per_token = 2,
                         .scope_tokens = 250,
                         .balance_coefficient = 1,
                         .z_coefficient = 1,
                         .scope_starts = starts});
    return support::tensors(std::move(out.experts), std::move(out.weights), std::move(out.counts),
                            std::move(dlogits), std::move(losses));
  });
}

// A token's logits are neighbours among the floats, so that rounding decides whose sigmoid is
// larger.
TEST(Route, ChoosesTheSameOnEveryDevice) {
  constexpr int64_t kTokens = 70;
  constexpr int64_t kExperts = 67;
  const Tensor logits = random_tensor(DType::kF32, {kTokens, kExperts}, 61, 2);
  const auto l = logits.as<float>();
  for (size_t i = 0; i < l.size(); ++i) {
    const size_t e = i % kExperts;
    if (e > 0) l[i] = l[i - e] * (1 + static_cast<float>(e * 29 % kExperts) * 0x1p-23f);
  }
  for (const RouterMode mode : kModes) {
    const Routed found = route(mode, logits, 6, 2);
    const Routed expected = route(mode, logits, 6, 2, {}, 1, {}, Device{});
    EXPECT_EQ(ints(found.experts), ints(expected.experts)) << name_of_mode(mode);
    EXPECT_EQ(to_doubles(found.counts), to_doubles(expected.counts)) << name_of_mode(mode);
  }
}

TEST(Route, TakesNoTokens) {
  const Routed found = route(RouterMode::kSoftmax, Tensor(DType::kF32, {0, 3}), 2);
  EXPECT_EQ(to_doubles(found.counts), std::vector<double>(3, 0.0));
}

TensorView f32(Shape shape) {
  return plan_view(DType::kF32, shape);
}
TensorView i32(Shape shape) {
  return plan_view(DType::kI32, shape);
}

TEST(Route, SaysWhatIsWrong) {
  Stream stream(Device{DeviceKind::kPlan});
  const RouteForward good{.experts = i32({6, 2}),
                          .weights = f32({6, 2}),
                          .counts = f32({2, 4}),
                          .logits = f32({6, 4}),
                          .mode = RouterMode::kSoftmax};
  route_forward(stream, good);
  const auto expect = [&](auto change, const std::string& sentence) {
    RouteForward bad = good;
    change(bad);
    expect_error([&] { route_forward(stream, bad); }, sentence);
  };
  expect(
      [](RouteForward& a) {
        a.logits = plan_view(DType::kBF16, {6, 4});
      },
      "route_forward: logits is bf16 [6, 4], expected f32 [tokens, experts]");
  expect(
      [](RouteForward& a) {
        a.logits = f32({6, 2000});
      },
      "route_forward: logits has 2000 experts, expected 1 to 1024");
  expect(
      [](RouteForward& a) {
        a.experts = i32({5, 2});
      },
      "route_forward: experts is i32 [5, 2], expected i32 [tokens, k] = [6, 2]");
  expect(
      [](RouteForward& a) {
        a.experts = i32({6, 5});
      },
      "route_forward: experts is [6, 5], expected k from 1 to 4, the number of experts");
  expect(
      [](RouteForward& a) {
        a.weights = f32({6, 3});
      },
      "route_forward: weights is f32 [6, 3], expected f32 [tokens, k] = [6, 2]");
  expect(
      [](RouteForward& a) {
        a.counts = f32({4, 4});
      },
      "route_forward: counts has 4 scopes, expected a number that divides 6 tokens");
  expect(
      [](RouteForward& a) {
        a.counts = f32({4, 4});
        a.scope_starts = i32({4});
      },
      "route_forward: scope_starts is i32 [4], expected i32 [scopes + 1] = [5]");
  expect(
      [](RouteForward& a) {
        a.counts = f32({0, 4});
        a.scope_starts = i32({1});
      },
      "route_forward: counts has 0 scopes, expected at least 1");
  expect([](RouteForward& a) { a.bias = f32({4}); },
         "route_forward: a bias was given, expected none except with kSigmoid");
  expect(
      [](RouteForward& a) {
        a.mode = RouterMode::kSigmoid;
        a.bias = f32({3});
      },
      "route_forward: bias is f32 [3], expected f32 [experts] = [4]");
}

TEST(Route, BackwardAndLossesSayWhatIsWrong) {
  Stream stream(Device{DeviceKind::kPlan});
  expect_error(
      [&] {
        route_backward(stream, {.dlogits = f32({6, 3}),
                                .dweights = f32({6, 2}),
                                .logits = f32({6, 4}),
                                .experts = i32({6, 2}),
                                .mode = RouterMode::kSoftmax});
      },
      "route_backward: dlogits is f32 [6, 3], expected f32 [tokens, experts] = [6, 4]");
  RouterLoss loss{.losses = f32({2}),
                  .dlogits = f32({6, 4}),
                  .logits = f32({6, 4}),
                  .counts = f32({1, 4}),
                  .mode = RouterMode::kSoftmax,
                  .experts_per_token = 5,
                  .scope_tokens = 6,
                  .balance_coefficient = 1,
                  .z_coefficient = 1};
  expect_error([&] { router_loss(stream, loss); },
               "router_loss: experts_per_token is 5, expected 1 to 4");
  loss.experts_per_token = 2;
  loss.scope_tokens = 0;
  expect_error([&] { router_loss(stream, loss); },
               "router_loss: scope_tokens is 0, expected at least 1");
  expect_error([&] { balance_bias(stream, {.bias = f32({4}), .counts = f32({5}), .rate = 1}); },
               "balance_bias: counts is f32 [5], expected f32 [experts] = [4]");
}

}  // namespace
}  // namespace tessera
