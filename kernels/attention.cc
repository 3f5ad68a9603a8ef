#include "kernels/attention.h"

#include <cmath>

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

namespace {

/// Head h of q belongs to group (h + first_head) / group_heads.
void check_heads(const char* who, const AttentionInputs& a) {
  const int64_t heads = a.q.shape()[1];
  const int64_t kv_heads = a.k.shape()[1];
  if (a.group_heads == 0) {
    CHECK(kv_heads >= 1 && heads % kv_heads == 0, who, ": ", heads, " heads and ", kv_heads,
          " kv_heads, expected a multiple");
    CHECK(a.first_head == 0, who, ": first_head is ", a.first_head, " without group_heads");
    return;
  }
  CHECK(a.group_heads >= 1 && a.first_head >= 0, who, ": group_heads is ", a.group_heads,
        " and first_head ", a.first_head, ", expected at least 1 and 0");
  CHECK(a.first_head + heads <= kv_heads * a.group_heads, who, ": heads ", a.first_head, " to ",
        a.first_head + heads - 1, ", but ", kv_heads, " groups of ", a.group_heads);
}

const char* axes_of_keys(const ConstTensorView& q, const ConstTensorView& k) {
  return q.shape()[0] == k.shape()[0] ? "[tokens, kv_heads, d]" : "[keys, kv_heads, d]";
}

}  // namespace

void check_attention(const char* who, const AttentionInputs& a) {
  const auto name = [&](const char* tensor) { return concat(who, ": ", tensor); };
  expect_floats(a.q, 3, name("q").c_str(), "[tokens, heads, d]");
  expect_floats(a.k, 3, name("k").c_str(), "[tokens, kv_heads, d]");
  const int64_t tokens = a.q.shape()[0];
  const int64_t heads = a.q.shape()[1];
  const int64_t kv_heads = a.k.shape()[1];
  const int64_t d = a.q.shape()[2];
  CHECK(d >= 8 && d <= kMaxHeadDim && d % 8 == 0, who, ": d is ", d,
        ", expected a multiple of 8 up to ", kMaxHeadDim);
  check_heads(who, a);
  const Shape keys{a.grid.key_rows > 0 ? a.grid.key_rows : tokens, kv_heads, d};
  const char* axes = axes_of_keys(a.q, a.k);
  expect_tensor(a.k, a.q.dtype(), keys, name("k").c_str(), axes);
  expect_tensor(a.v, a.q.dtype(), keys, name("v").c_str(), axes);
  if (!a.sink_logits.empty()) {
    expect_tensor(a.sink_logits, DType::kF32, {heads}, name("sink_logits").c_str(), "[heads]");
  }
  CHECK(a.grid.tokens() == tokens, who, ": the grid has ", a.grid.tokens(), " tokens, q has ",
        tokens);
  CHECK(a.grid.pieces() >= 0, who, ": starts is ", a.grid.starts.shape(),
        ", expected [pieces + 1]");
  for (const int32_t group : a.groups) {
    CHECK(group >= 0 && group < kv_heads, who, ": group is ", group, ", expected 0 to ",
          kv_heads - 1);
  }
  CHECK(a.scale > 0 && std::isfinite(a.scale), who, ": scale is ", a.scale,
        ", expected a positive number");
}

namespace {

void check_range(const char* who, int64_t window, int64_t sink_tokens) {
  CHECK(window >= 1, who, ": window is ", window, ", expected at least 1");
  CHECK(sink_tokens >= 0, who, ": sink_tokens is ", sink_tokens, ", expected at least 0");
}

}  // namespace

void attention_forward(Stream& stream, const AttentionForward& a) {
  constexpr const char* kWho = "attention_forward";
  check_attention(
      kWho, {a.q, a.k, a.v, a.sink_logits, a.grid, a.groups, a.scale, a.group_heads, a.first_head});
  check_range(kWho, a.window, a.sink_tokens);
  expect_tensor(a.o, a.q.dtype(), a.q.shape(), "attention_forward: o", "[tokens, heads, d]");
  expect_tensor(a.lse, DType::kF32, {a.q.shape()[1], a.q.shape()[0]}, "attention_forward: lse",
                "[heads, tokens]");
  if (stream.on(DeviceKind::kCpu)) cpu::attention_forward(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::attention_forward(stream, a);
  }
}

void attention_backward(Stream& stream, const AttentionBackward& a) {
  constexpr const char* kWho = "attention_backward";
  check_attention(
      kWho, {a.q, a.k, a.v, a.sink_logits, a.grid, a.groups, a.scale, a.group_heads, a.first_head});
  check_range(kWho, a.window, a.sink_tokens);
  check_attention_gradient(kWho, {.dq = a.dq,
                                  .dk = a.dk,
                                  .dv = a.dv,
                                  .delta = a.delta,
                                  .d_o = a.d_o,
                                  .o = a.o,
                                  .lse = a.lse,
                                  .q = a.q,
                                  .k = a.k,
                                  .sink_logits = a.sink_logits,
                                  .dsink_logits = a.dsink_logits});
  if (stream.on(DeviceKind::kCpu)) cpu::attention_backward(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::attention_backward(stream, a);
  }
}

void check_attention_gradient(const char* who, const AttentionGradientTensors& a) {
  const auto name = [&](const char* tensor) { return concat(who, ": ", tensor); };
  const DType dtype = a.q.dtype();
  const int64_t tokens = a.q.shape()[0];
  const int64_t heads = a.q.shape()[1];
  expect_tensor(a.dq, dtype, a.q.shape(), name("dq").c_str(), "[tokens, heads, d]");
  const char* axes = axes_of_keys(a.q, a.k);
  expect_tensor(a.dk, dtype, a.k.shape(), name("dk").c_str(), axes);
  expect_tensor(a.dv, dtype, a.k.shape(), name("dv").c_str(), axes);
  expect_tensor(a.d_o, dtype, a.q.shape(), name("d_o").c_str(), "[tokens, heads, d]");
  expect_tensor(a.o, dtype, a.q.shape(), name("o").c_str(), "[tokens, heads, d]");
  expect_tensor(a.delta, DType::kF32, {heads, tokens}, name("delta").c_str(), "[heads, tokens]");
  expect_tensor(a.lse, DType::kF32, {heads, tokens}, name("lse").c_str(), "[heads, tokens]");
  CHECK(a.sink_logits.empty() == a.dsink_logits.empty(), who, ": sink_logits is ",
        a.sink_logits.empty() ? "missing" : "given", ", but dsink_logits is ",
        a.dsink_logits.empty() ? "missing" : "given");
  if (!a.dsink_logits.empty()) {
    expect_tensor(a.dsink_logits, DType::kF32, {heads}, name("dsink_logits").c_str(), "[heads]");
  }
}

}  // namespace tessera
