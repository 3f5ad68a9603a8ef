#include "kernels/route.h"

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

namespace {

/// logits [tokens, experts] and what they have in common with the experts chosen from them.
void expect_logits(const ConstTensorView& logits, const char* what) {
  CHECK(logits.dtype() == DType::kF32 && logits.shape().rank() == 2, what, " is ",
        name_of(logits.dtype()), " ", logits.shape(), ", expected f32 [tokens, experts]");
  CHECK(logits.shape()[1] >= 1 && logits.shape()[1] <= kMaxExperts, what, " has ",
        logits.shape()[1], " experts, expected 1 to ", kMaxExperts);
}

/// [tokens, k] of chosen experts.
void expect_choice(const ConstTensorView& experts, const ConstTensorView& logits,
                   const char* what) {
  CHECK(experts.shape().rank() == 2, what, " is ", experts.shape(), ", expected [tokens, k]");
  const int64_t k = experts.shape()[1];
  expect_tensor(experts, DType::kI32, {logits.shape()[0], k}, what, "[tokens, k]");
  CHECK(k >= 1 && k <= logits.shape()[1], what, " is ", experts.shape(), ", expected k from 1 to ",
        logits.shape()[1], ", the number of experts");
}

/// counts [scopes, experts] and scope_starts, without which the scopes divide the tokens.
void expect_counts(const ConstTensorView& counts, const ConstTensorView& scope_starts,
                   const ConstTensorView& logits, const char* what, const char* what_starts) {
  CHECK(counts.shape().rank() == 2, what, " is ", counts.shape(), ", expected [scopes, experts]");
  const int64_t scopes = counts.shape()[0];
  expect_tensor(counts, DType::kF32, {scopes, logits.shape()[1]}, what, "[scopes, experts]");
  if (!scope_starts.empty()) {
    CHECK(scopes >= 1, what, " has 0 scopes, expected at least 1");
    expect_tensor(scope_starts, DType::kI32, {scopes + 1}, what_starts, "[scopes + 1]");
    return;
  }
  CHECK(scopes >= 1 && logits.shape()[0] % scopes == 0, what, " has ", scopes,
        " scopes, expected a number that divides ", logits.shape()[0], " tokens");
}

}  // namespace

void route_forward(Stream& stream, const RouteForward& a) {
  expect_logits(a.logits, "route_forward: logits");
  expect_choice(a.experts, a.logits, "route_forward: experts");
  expect_tensor(a.weights, DType::kF32, a.experts.shape(), "route_forward: weights", "[tokens, k]");
  expect_counts(a.counts, a.scope_starts, a.logits, "route_forward: counts",
                "route_forward: scope_starts");
  if (!a.bias.empty()) {
    CHECK(a.mode == RouterMode::kSigmoid,
          "route_forward: a bias was given, expected none except with kSigmoid");
    expect_tensor(a.bias, DType::kF32, {a.logits.shape()[1]}, "route_forward: bias", "[experts]");
  }
  if (stream.on(DeviceKind::kCpu)) cpu::route_forward(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::route_forward(stream, a);
  }
}

void route_backward(Stream& stream, const RouteBackward& a) {
  expect_logits(a.logits, "route_backward: logits");
  expect_choice(a.experts, a.logits, "route_backward: experts");
  expect_tensor(a.dlogits, DType::kF32, a.logits.shape(), "route_backward: dlogits",
                "[tokens, experts]");
  expect_tensor(a.dweights, DType::kF32, a.experts.shape(), "route_backward: dweights",
                "[tokens, k]");
  if (stream.on(DeviceKind::kCpu)) cpu::route_backward(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::route_backward(stream, a);
  }
}

void router_loss(Stream& stream, const RouterLoss& a) {
  expect_logits(a.logits, "router_loss: logits");
  expect_counts(a.counts, a.scope_starts, a.logits, "router_loss: counts",
                "router_loss: scope_starts");
  expect_tensor(a.losses, DType::kF32, {2}, "router_loss: losses", "[2]");
  expect_tensor(a.dlogits, DType::kF32, a.logits.shape(), "router_loss: dlogits",
                "[tokens, experts]");
  CHECK(a.experts_per_token >= 1 && a.experts_per_token <= a.logits.shape()[1],
        "router_loss: experts_per_token is ", a.experts_per_token, ", expected 1 to ",
        a.logits.shape()[1]);
  CHECK(a.scope_tokens >= 1, "router_loss: scope_tokens is ", a.scope_tokens,
        ", expected at least 1");
  if (stream.on(DeviceKind::kCpu)) cpu::router_loss(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::router_loss(stream, a);
  }
}

void balance_bias(Stream& stream, const BalanceBias& a) {
  CHECK(a.bias.shape().rank() == 1, "balance_bias: bias is ", a.bias.shape(),
        ", expected [experts]");
  expect_tensor(a.bias, DType::kF32, a.bias.shape(), "balance_bias: bias", "[experts]");
  expect_tensor(a.counts, DType::kF32, a.bias.shape(), "balance_bias: counts", "[experts]");
  if (stream.on(DeviceKind::kCpu)) cpu::balance_bias(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::balance_bias(stream, a);
  }
}

}  // namespace tessera
