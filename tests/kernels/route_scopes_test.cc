#include <gtest/gtest.h>

#include "kernels/route.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"
#include "tests/support/tolerance.h"

// Scopes that are any ranges of tokens, as ranks have them that hold parts of sequences.

namespace tessera {
namespace {

using support::expect_close;
using support::expect_error;
using support::from_ints;
using support::random_tensor;
using support::Tensor;
using support::to_doubles;

/// counts of route_forward.
Tensor route(const ConstTensorView& logits, int64_t k, int64_t scopes,
             const ConstTensorView& scope_starts = {}, Device device = support::device()) {
  const int64_t tokens = logits.shape()[0];
  Tensor counts = support::filled(DType::kF32, {scopes, logits.shape()[1]}, 7);
  Stream stream(device);
  route_forward(stream, {.experts = Tensor(DType::kI32, {tokens, k}),
                         .weights = Tensor(DType::kF32, {tokens, k}),
                         .counts = counts,
                         .logits = logits,
                         .mode = RouterMode::kSigmoid,
                         .scope_starts = scope_starts});
  return counts;
}

// Ten tokens of two scopes of five, on ranks that hold tokens [0, 3), [3, 8) and [8, 10).
TEST(RouteScopes, ScopesOfShardsAddUpToTheWhole) {
  struct Rank {
    int64_t first, tokens;
    std::vector<int32_t> starts;
  };
  const std::vector<Rank> ranks{{0, 3, {0, 3, 3}}, {3, 5, {0, 2, 5}}, {8, 2, {0, 0, 2}}};
  const auto add_losses = [](const Tensor& losses, TensorView dlogits, ConstTensorView logits,
                             const Tensor& counts, ConstTensorView starts) {
    Stream stream(support::device());
    router_loss(stream, {.losses = losses,
                         .dlogits = dlogits,
                         .logits = logits,
                         .counts = counts,
                         .mode = RouterMode::kSigmoid,
                         .experts_per_token = 2,
                         .scope_tokens = 5,
                         .balance_coefficient = 0.7f,
                         .z_coefficient = 0.3f,
                         .scope_starts = starts});
  };
  const Tensor logits = random_tensor(DType::kF32, {10, 6}, 61, 2);
  const Tensor whole = route(logits, 2, 2);
  const Tensor losses(DType::kF32, {2});
  const Tensor dlogits(DType::kF32, {10, 6});
  add_losses(losses, dlogits, logits, whole, {});

  std::vector<double> counts(12);
  const Tensor sum_of_losses(DType::kF32, {2});
  const Tensor parts(DType::kF32, {10, 6});
  for (const Rank& rank : ranks) {
    const TensorView rows = logits.view().rows(rank.first, rank.tokens);
    const Tensor starts = from_ints(rank.starts);
    const Tensor here = route(rows, 2, 2, starts.view());
    for (size_t i = 0; i < 12; ++i) counts[i] += to_doubles(here)[i];
    add_losses(sum_of_losses, parts.view().rows(rank.first, rank.tokens), rows, whole,
               starts.view());
  }
  EXPECT_EQ(counts, to_doubles(whole));
  support::expect_same_bits(parts, dlogits, "dlogits");
  expect_close(sum_of_losses, to_doubles(losses), support::tolerance(DType::kF32), "losses");
}

TEST(RouteScopes, ScopeStartsMayGiveMoreScopesThanTokens) {
  const Tensor starts = from_ints({0, 0, 0, 0});
  const Tensor found = route(Tensor(DType::kF32, {0, 2}), 1, 3, starts.view());
  EXPECT_EQ(to_doubles(found), std::vector<double>(6, 0.0));
}

TEST(RouteScopes, RefusesScopeStartsThatLeaveTokensOut) {
  const Tensor logits(DType::kF32, {4, 3});
  for (const std::vector<int32_t>& bad :
       {std::vector<int32_t>{0, 2, 3}, {1, 2, 4}, {0, 5, 4}, {0, 2, 5}, {0, -1, 4}}) {
    const Tensor starts = from_ints(bad);
    const std::string sentence = concat("router: scope_starts goes from ", bad.front(), " to ",
                                        bad.back(), ", expected to ascend from 0 to 4");
    expect_error([&] { route(logits, 1, 2, starts.view(), Device{}); }, sentence);
    expect_error(
        [&] {
          Stream stream(Device{});
          router_loss(stream, {.losses = Tensor(DType::kF32, {2}),
                               .dlogits = Tensor(DType::kF32, {4, 3}),
                               .logits = logits,
                               .counts = Tensor(DType::kF32, {2, 3}),
                               .mode = RouterMode::kSoftmax,
                               .experts_per_token = 1,
                               .scope_tokens = 4,
                               .balance_coefficient = 1,
                               .z_coefficient = 1,
                               .scope_starts = starts});
        },
        sentence);
  }
}

}  // namespace
}  // namespace tessera
