#include "kernels/attention_backward_sm90.h"

#include <gtest/gtest.h>

#include "kernels/core/capability.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"
#include "tests/support/segments.h"
#include "tests/support/tolerance.h"

// Which calls Hopper's kernels take, and that their gradients are those of the kernels for all;
// attention_test and sparse_attention_test have the definition.

namespace tessera {
namespace {

using support::random_tensor;
using support::Segments;
using support::Tensor;

struct Gradients {
  Tensor dq, dk, dv, delta;
};

/// A call of attention backward for two groups of heads.
struct Call {
  Segments segments;
  Tensor q, k, v, d_o, o, lse;
  Gradients to;
  std::vector<int32_t> groups{0, 1};
  int64_t window;

  Call(std::vector<int64_t> lengths, int64_t heads, int64_t d, int64_t of_window,
       DType dtype = DType::kBF16)
      : segments(lengths, 64),
        q(random_tensor(dtype, {segments.tokens(), heads, d}, 1)),
        k(random_tensor(dtype, {segments.tokens(), 2, d}, 2)),
        v(random_tensor(dtype, {segments.tokens(), 2, d}, 3)),
        d_o(random_tensor(dtype, {segments.tokens(), heads, d}, 4)),
        o(dtype, q.shape()),
        lse(DType::kF32, {heads, segments.tokens()}),
        to(gradients()),
        window(of_window) {}
  Gradients gradients() const {
    return {Tensor(q.dtype(), q.shape()), Tensor(k.dtype(), k.shape()),
            Tensor(v.dtype(), v.shape()), Tensor(DType::kF32, lse.shape())};
  }
  AttentionForward forward() const {
    return {.o = o,
            .lse = lse,
            .q = q,
            .k = k,
            .v = v,
            .grid = segments.grid(),
            .groups = groups,
            .window = window,
            .sink_tokens = 3,
            .scale = 0.125f};
  }
  AttentionBackward backward(const Gradients& gradients) const {
    return {.dq = gradients.dq,
            .dk = gradients.dk,
            .dv = gradients.dv,
            .delta = gradients.delta,
            .d_o = d_o,
            .o = o,
            .lse = lse,
            .q = q,
            .k = k,
            .v = v,
            .grid = segments.grid(),
            .groups = groups,
            .window = window,
            .sink_tokens = 3,
            .scale = 0.125f};
  }
};

TEST(AttentionBackwardSm90, TakesWholeGroupsOfSomeSizes) {
  Stream stream(support::device());
  const bool hopper = gpu::compute_capability(0) == 90;
  const auto taken = [&](const Call& call) {
    return gpu::sm90_takes(stream, call.backward(call.to));
  };
  EXPECT_EQ(taken(Call({30}, 4, 64, 9)), hopper);
  EXPECT_EQ(taken(Call({30}, 16, 128, 9)), hopper);
  EXPECT_FALSE(taken(Call({30}, 4, 64, 9, DType::kF32)));
  EXPECT_FALSE(taken(Call({30}, 4, 72, 9)));
  EXPECT_FALSE(taken(Call({30}, 6, 64, 9)));
}

TEST(AttentionBackwardSm90, AgreesWithTheKernelsForAll) {
  if (gpu::compute_capability(0) != 90) GTEST_SKIP() << "needs a GPU of compute capability 9.0";
  for (const Call& call : {Call({190, 0, 1, 70}, 4, 128, 100), Call({150}, 8, 64, 1000)}) {
    Stream stream(support::device());
    const Gradients expected = call.gradients();
    attention_forward(stream, call.forward());
    gpu::attention_backward_sm80(stream, call.backward(expected));
    gpu::attention_backward_sm90(stream, call.backward(call.to));
    stream.synchronize();
    const double tolerance = 2 * support::tolerance(DType::kBF16);
    support::expect_close(call.to.dq, support::to_doubles(expected.dq), tolerance, "dq");
    support::expect_close(call.to.dk, support::to_doubles(expected.dk), tolerance, "dk");
    support::expect_close(call.to.dv, support::to_doubles(expected.dv), tolerance, "dv");
  }
}

}  // namespace
}  // namespace tessera
