// What must hold for sparse attention beyond its definition.

#include <gtest/gtest.h>

#include "kernels/attention.h"
#include "kernels/sparse_attention.h"
#include "tests/support/compare.h"
#include "tests/support/sparse_case.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using reference::Attended;
using support::Sparse;
using support::SparseCase;
using support::Tensor;

constexpr double kAlmostOne = 1 - 0x1p-10;

/// o and lse of dense attention over the same operands, and its gradients.
struct Dense {
  explicit Dense(const Sparse& x)
      : o(x.o.dtype(), x.q.shape()),
        lse(DType::kF32, x.lse.shape()),
        dq(x.o.dtype(), x.q.shape()),
        dk(x.o.dtype(), x.k.shape()),
        dv(x.o.dtype(), x.k.shape()) {
    Stream stream(support::device(), 1);
    const float scale = static_cast<float>(x.shape.scale);
    const int64_t window = x.segments.tokens();
    attention_forward(stream, {.o = o,
                               .lse = lse,
                               .q = x.q,
                               .k = x.k,
                               .v = x.v,
                               .grid = x.segments.grid(),
                               .groups = x.groups,
                               .window = window,
                               .sink_tokens = 0,
                               .scale = scale});
    const Tensor delta(DType::kF32, x.lse.shape());
    attention_backward(stream, {.dq = dq,
                                .dk = dk,
                                .dv = dv,
                                .delta = delta,
                                .d_o = x.d_o,
                                .o = o,
                                .lse = lse,
                                .q = x.q,
                                .k = x.k,
                                .v = x.v,
                                .grid = x.segments.grid(),
                                .groups = x.groups,
                                .window = window,
                                .sink_tokens = 0,
                                .scale = scale});
  }
  Tensor o, lse, dq, dk, dv;
};

TEST(SparseAttentionProperties, ChoosingEverythingIsFullCausalAttention) {
  for (const int64_t block : {16, 64, 128}) {
    for (const double strength : {0.0, 0.7, kAlmostOne}) {
      const Sparse x({{400, 30}, block, 2, 1, 32, {1, 2, 1000}, strength, false});
      x.run();
      const Dense dense(x);
      support::expect_close(x.o, support::to_doubles(dense.o), 1e-13, "o");
      support::expect_close(x.lse, support::to_doubles(dense.lse), 1e-13, "lse");
      support::expect_close(x.dq, support::to_doubles(dense.dq), 1e-12, "dq");
      support::expect_close(x.dk, support::to_doubles(dense.dk), 1e-12, "dk");
      support::expect_close(x.dv, support::to_doubles(dense.dv), 1e-12, "dv");
      if (block == 16) continue;
      // The same panels in the same order.
      support::expect_same_bits(x.o, dense.o, "o");
      support::expect_same_bits(x.dq, dense.dq, "dq");
    }
  }
}

TEST(SparseAttentionProperties, DoesNotDependOnThreads) {
  for (const DType dtype : support::dtypes()) {
    support::expect_same_on_any_threads([&](Stream& stream) {
      Sparse x({{300, 5, 77}, 16, 4, 2, 24, {1, 2, 3}, 0.9, true, dtype});
      x.run(stream.threads().threads());
      return support::tensors(std::move(x.o), std::move(x.lse), std::move(x.block_lse),
                              std::move(x.dq), std::move(x.dk), std::move(x.dv),
                              std::move(x.dlog_gate), std::move(x.dsink_logits));
    });
  }
}

void copy_tokens(const Tensor& to, int64_t first, const Tensor& from, int64_t from_first,
                 int64_t count) {
  const ConstTensorView rows = from.view().rows(from_first, count);
  std::memcpy(to.view().rows(first, count).data(), rows.data(), static_cast<size_t>(rows.bytes()));
}

TEST(SparseAttentionProperties, ASegmentDoesNotDependOnTheOthers) {
  for (const DType dtype : support::dtypes()) {
    const BlockRule rule{1, 1, 2};
    const Sparse together({{90, 0, 250, 20}, 32, 4, 1, 24, rule, 0.9, false, dtype});
    together.run();
    Sparse alone({{250}, 32, 4, 1, 24, rule, 0.9, false, dtype});
    for (int64_t i = 0; i < 250; ++i) alone.scores.of(0, i) = together.scores.of(0, 90 + i);
    copy_tokens(alone.q, 0, together.q, 90, 250);
    copy_tokens(alone.k, 0, together.k, 90, 250);
    copy_tokens(alone.v, 0, together.v, 90, 250);
    copy_tokens(alone.d_o, 0, together.d_o, 90, 250);
    alone.run();
    const auto same = [](const Tensor& a, const Tensor& b, const char* what) {
      support::expect_same_bits(a, b.view().rows(90, 250), what);
    };
    same(alone.o, together.o, "o");
    same(alone.dq, together.dq, "dq");
    same(alone.dk, together.dk, "dk");
    same(alone.dv, together.dv, "dv");
  }
}

TEST(SparseAttentionProperties, DoesNotSeeTheFuture) {
  for (const DType dtype : support::dtypes()) {
    const SparseCase c{{131}, 16, 4, 2, 16, {1, 1, 2}, 0.9, true, dtype};
    const Sparse before(c);
    before.run(1, false);
    const int64_t step = support::device().kind == DeviceKind::kGpu ? 13 : 1;
    for (int64_t changed = 0; changed < 131; changed += step) {
      Sparse after(c);
      const Tensor other = support::random_tensor(dtype, {1, 4, 16}, 99, 9);
      copy_tokens(after.q, changed, other, 0, 1);
      for (const Tensor* x : {&after.k, &after.v}) {
        std::memcpy(x->view().rows(changed, 1).data(), other.view().data(),
                    static_cast<size_t>(x->view().rows(changed, 1).bytes()));
      }
      // Its gate query, and the gate key of its block, which later tokens score.
      for (int64_t i = changed; i < 131; ++i) {
        for (double& z : after.scores.of(0, i)) z = -z;
      }
      after.run(1, false);
      support::expect_same_bits(after.o.view().rows(0, changed), before.o.view().rows(0, changed),
                                concat("token ", changed, " changed"));
    }
  }
}

// What all tokens chose, or see as a sink, a GPU cuts into chunks.
TEST(SparseAttentionProperties, ABlockThatAllTokensChoseIsLikeOthers) {
  Sparse x({{20, 330}, 16, 2, 1, 8, {1, 1, 1}, 0.5, false});
  for (int64_t i = 20; i < 350; ++i) {
    auto& scores = x.scores.of(0, i);
    if (scores.size() > 2) scores[2] = 20;
  }
  x.run();
  const Attended attended = x.attended();
  const auto gates = attended.flat_gates<double>();
  const auto gradient = reference::attention_gradient(
      x.segments, x.shape, x.input<double>(), support::to_doubles(x.d_o), attended.log_gate(gates));
  support::expect_close(x.dq, gradient.dq, 1e-11, "dq");
  support::expect_close(x.dk, gradient.dk, 1e-11, "dk");
  support::expect_close(x.dv, gradient.dv, 1e-11, "dv");
}

/// The largest change of the last token's output when its k-th and (k+1)-th block swap places.
double jump(double strength) {
  SparseCase c{{128}, 16, 1, 1, 8, {0, 1, 1}, strength, false};
  std::vector<std::vector<double>> results;
  for (const double step : {1e-6, -1e-6}) {
    Sparse x(c);
    x.scores.of(0, 127) = {-3, 0, -3, -3, step, -3, -3};
    x.run(1, false);
    const auto o = support::to_doubles(x.o);
    results.emplace_back(o.end() - 8, o.end());
  }
  double largest = 0;
  for (size_t i = 0; i < 8; ++i) {
    largest = std::max(largest, std::abs(results[0][i] - results[1][i]));
  }
  return largest;
}

TEST(SparseAttentionProperties, IsContinuousWhereChoicesSwap) {
  EXPECT_GT(jump(0), 1e-2);
  EXPECT_LT(jump(kAlmostOne), 2e-3);
}

TEST(SparseAttentionProperties, GateGradientsAndSinkCancelInEveryRow) {
  const Sparse x({{230}, 16, 4, 2, 16, {1, 2, 3}, 0.7, true});
  x.run();
  const Attended attended = x.attended();
  const auto gates = attended.flat_gates<double>();
  const auto gradient = reference::attention_gradient(
      x.segments, x.shape, x.input<double>(), support::to_doubles(x.d_o), attended.log_gate(gates));
  const auto dlog_gate = support::to_doubles(x.dlog_gate);
  const auto lse = support::to_doubles(x.lse);
  const auto delta = support::to_doubles(x.delta);
  const auto sinks = support::to_doubles(x.sink_logits);
  for (int64_t c = 0; c < 2; ++c) {
    for (int64_t i = 0; i < 230; ++i) {
      double total = 0;
      for (size_t s = 0; s < 3; ++s) total += dlog_gate[attended.row(c, i) * 3 + s];
      for (int64_t b = 0; b <= x.segments.own_block(i); ++b) {
        if (attended.forced(i, b)) total += ds_of_block(x, gradient, c, i, b);
      }
      for (int64_t head = 2 * c; head < 2 * c + 2; ++head) {
        const auto at = static_cast<size_t>(head * 230 + i);
        total -= std::exp(sinks[static_cast<size_t>(head)] - lse[at]) * delta[at];
      }
      EXPECT_NEAR(total, 0, 3e-6) << "group " << c << " token " << i;
    }
  }
}

TEST(SparseAttentionProperties, WhatIsDroppedBoundsTheError) {
  // Strength 0 and no sink: the output differs from full attention by the dropped blocks alone.
  const Sparse x({{200}, 16, 2, 1, 16, {1, 1, 3}, 0, false});
  x.run();
  const Dense dense(x);
  double largest_value = 0;
  for (const double value : support::to_doubles(x.v)) {
    largest_value = std::max(largest_value, std::abs(value));
  }
  const auto of = [](const Tensor& t) { return support::to_doubles(t); };
  const auto o = of(x.o);
  const auto full = of(dense.o);
  const auto lse = of(x.lse);
  const auto full_lse = of(dense.lse);
  for (int64_t i = 0; i < 200; ++i) {
    for (int64_t head = 0; head < 2; ++head) {
      const auto at = static_cast<size_t>(head * 200 + i);
      const double dropped = 1 - std::exp(lse[at] - full_lse[at]);
      EXPECT_GE(dropped, -1e-6);
      for (int64_t e = 0; e < 16; ++e) {
        const size_t element = reference::at(i, head, 2, 16, e);
        EXPECT_LE(std::abs(o[element] - full[element]), 2 * dropped * largest_value + 1e-5);
      }
    }
  }
}

TEST(SparseAttentionProperties, BlockLseOfFarAwayBlocks) {
  // The scores of chosen blocks lie hundreds below that of the token itself.
  Sparse x({{160}, 16, 2, 1, 16, {0, 1, 4}, 0.5, false});
  for (int64_t i = 0; i < 160; ++i) {
    for (int64_t e = 0; e < 16; ++e) {
      x.k.as<float>()[static_cast<size_t>(i * 16 + e)] *= i >= 144 ? 100 : 30;
      if (i < 144) continue;
      for (int64_t head = 0; head < 2; ++head) {
        x.q.as<float>()[reference::at(i, head, 2, 16, e)] =
            x.k.as<float>()[static_cast<size_t>(i * 16 + e)] / 10;
      }
    }
  }
  x.run(1, false);
  const Attended attended = x.attended();
  support::expect_close(x.block_lse, expected_block_lse(x, attended), 1e-11, "block_lse");
}

}  // namespace
}  // namespace tessera
