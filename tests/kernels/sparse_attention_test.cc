#include "kernels/sparse_attention.h"

#include <gtest/gtest.h>

#include <numeric>

#include "kernels/attention.h"
#include "tests/reference/attention.h"
#include "tests/reference/complex_step.h"
#include "tests/reference/sparse_attention.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"
#include "tests/support/segments.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using reference::Attended;
using reference::AttentionInput;
using reference::AttentionShape;
using reference::Complex;
using reference::Scores;
using support::Segments;
using support::Tensor;

struct Case {
  std::vector<int64_t> lengths;
  int64_t block;
  int64_t heads;
  int64_t kv_heads;
  int64_t d;
  BlockRule rule;
  double strength;
  bool sink_logits;
  DType dtype = DType::kF32;
};

/// Operands, choices and results of one case; the groups are all KV heads.
struct Sparse {
  explicit Sparse(const Case& of)
      : c(of),
        segments(of.lengths, of.block),
        shape{of.heads, of.kv_heads, of.d, 1 / std::sqrt(static_cast<double>(of.d))},
        scores(segments, of.kv_heads, 9),
        q(support::random_tensor(of.dtype, {segments.tokens(), of.heads, of.d}, 1, 1.5)),
        k(support::random_tensor(of.dtype, {segments.tokens(), of.kv_heads, of.d}, 2)),
        v(support::random_tensor(of.dtype, {segments.tokens(), of.kv_heads, of.d}, 3)),
        d_o(support::random_tensor(of.dtype, {segments.tokens(), of.heads, of.d}, 4)),
        sink_logits(support::random_tensor(DType::kF32, {of.heads}, 5)),
        widths(support::filled(DType::kF32, {of.kv_heads}, 1.5)),
        groups(static_cast<size_t>(of.kv_heads)),
        o(support::filled(of.dtype, q.shape(), 77)),
        lse(support::filled(DType::kF32, {of.heads, segments.tokens()}, 77)),
        block_lse(support::filled(
            DType::kF32, {of.kv_heads, segments.tokens(), of.heads / of.kv_heads, of.rule.kept},
            77)),
        dq(support::filled(of.dtype, q.shape(), 77)),
        dk(support::filled(of.dtype, k.shape(), 77)),
        dv(support::filled(of.dtype, k.shape(), 77)),
        dlog_gate(support::filled(DType::kF32, {of.kv_heads, segments.tokens(), of.rule.kept}, 77)),
        delta(DType::kF32, {of.heads, segments.tokens()}),
        dsink_logits(support::filled(DType::kF32, {of.heads}, 1)) {
    std::iota(groups.begin(), groups.end(), 0);
  }

  Attended attended() const { return {scores, c.rule, c.strength, support::to_doubles(widths)}; }
  /// Runs forward and backward with the choices that follow from the scores.
  void run(int threads = 1, bool backward = true) const {
    const Attended chosen = attended();
    const support::Selection owner = reference::selection_of(scores, chosen);
    const BlockSelection selection = owner.view();
    const reference::Lists lists(scores, chosen);
    Stream stream(Device{}, threads);
    sparse_attention_forward(stream, forward(selection, lists.view()));
    if (backward) sparse_attention_backward(stream, gradient(selection, lists.view()));
  }
  SparseAttentionForward forward(const BlockSelection& selection, const BlockLists& lists) const {
    return {.o = o,
            .lse = lse,
            .q = q,
            .k = k,
            .v = v,
            .grid = segments.grid(),
            .groups = groups,
            .rule = c.rule,
            .selection = selection,
            .lists = lists,
            .ramp = {static_cast<float>(c.strength), widths},
            .scale = static_cast<float>(shape.scale),
            .sink_logits = c.sink_logits ? sink_logits.view() : TensorView(),
            .block_lse = block_lse};
  }
  SparseAttentionBackward gradient(const BlockSelection& selection, const BlockLists& lists) const {
    return {.dq = dq,
            .dk = dk,
            .dv = dv,
            .dlog_gate = dlog_gate,
            .delta = delta,
            .d_o = d_o,
            .o = o,
            .lse = lse,
            .q = q,
            .k = k,
            .v = v,
            .grid = segments.grid(),
            .groups = groups,
            .rule = c.rule,
            .selection = selection,
            .lists = lists,
            .ramp = {static_cast<float>(c.strength), widths},
            .scale = static_cast<float>(shape.scale),
            .sink_logits = c.sink_logits ? sink_logits.view() : TensorView(),
            .dsink_logits = c.sink_logits ? dsink_logits.view() : TensorView()};
  }
  template <class T>
  AttentionInput<T> input() const {
    const auto numbers = [](const Tensor& x) { return reference::as<T>(support::to_doubles(x)); };
    return {numbers(q), numbers(k), numbers(v),
            c.sink_logits ? numbers(sink_logits) : std::vector<T>()};
  }
  std::vector<double> added_to_sink_logits() const {
    std::vector<double> added = support::to_doubles(dsink_logits);
    for (double& x : added) x -= 1;
    return added;
  }

  Case c;
  Segments segments;
  AttentionShape shape;
  Scores scores;
  Tensor q, k, v, d_o, sink_logits, widths;
  std::vector<int32_t> groups;
  Tensor o, lse, block_lse, dq, dk, dv, dlog_gate, delta, dsink_logits;
};

constexpr double kAlmostOne = 1 - 0x1p-10;

std::vector<Case> cases() {
  return {
      {{180, 0, 1, 33}, 16, 4, 1, 16, {1, 2, 3}, 0.7, true},
      {{230, 70}, 32, 6, 3, 24, {0, 1, 2}, kAlmostOne, false},
      {{340}, 64, 4, 2, 64, {1, 1, 2}, 0.5, true},
      {{560, 40}, 128, 2, 1, 16, {1, 1, 1}, 0.9, false},
      {{410}, 80, 5, 1, 8, {0, 2, 2}, 0.9, true},
      {{120}, 16, 16, 1, 72, {2, 1, 3}, 0, true},
      {{110}, 16, 2, 2, 256, {1, 1, 2}, 0.9, false},
      {{150}, 16, 3, 1, 8, {1, 1, 20}, 0.9, false},
  };
}

/// sum_{keys of the block} ds over the heads of a group, from the reference.
double ds_of_block(const Sparse& x, const reference::AttentionGradient& gradient, int64_t group,
                   int64_t i, int64_t block) {
  double total = 0;
  const int64_t group_heads = x.c.heads / x.c.kv_heads;
  for (int64_t head = group * group_heads; head < (group + 1) * group_heads; ++head) {
    const auto& ds = gradient.ds[static_cast<size_t>(head * x.segments.tokens() + i)];
    for (size_t key = 0; key < ds.size(); ++key) {
      if (static_cast<int64_t>(key) / x.c.block == block) total += ds[key];
    }
  }
  return total;
}

std::vector<double> expected_dlog_gate(const Sparse& x, const Attended& attended,
                                       const reference::AttentionGradient& gradient) {
  std::vector<double> expected;
  for (int64_t c = 0; c < x.c.kv_heads; ++c) {
    for (int64_t i = 0; i < x.segments.tokens(); ++i) {
      const auto& blocks = attended.choices[attended.row(c, i)].blocks;
      for (size_t s = 0; s < static_cast<size_t>(x.c.rule.kept); ++s) {
        expected.push_back(s < blocks.size() ? ds_of_block(x, gradient, c, i, blocks[s]) : 0);
      }
    }
  }
  return expected;
}

/// block_lse where the kernel must write it, 77 elsewhere.
std::vector<double> expected_block_lse(const Sparse& x, const Attended& attended) {
  const auto input = x.input<double>();
  const int64_t group_heads = x.c.heads / x.c.kv_heads;
  const auto no_gate = [](int64_t, int64_t, int64_t) -> std::optional<double> { return 0; };
  std::vector<double> expected;
  for (int64_t c = 0; c < x.c.kv_heads; ++c) {
    for (int64_t i = 0; i < x.segments.tokens(); ++i) {
      for (int64_t h = 0; h < group_heads; ++h) {
        const auto scores = reference::attention_scores(x.segments, x.shape, input,
                                                        c * group_heads + h, i, no_gate);
        std::vector<double> row(static_cast<size_t>(x.c.rule.kept), 77);
        const auto& blocks = attended.choices[attended.row(c, i)].blocks;
        for (size_t s = 0; s < blocks.size(); ++s) {
          std::vector<double> of_block;
          for (int64_t j = blocks[s] * x.c.block; j < (blocks[s] + 1) * x.c.block; ++j) {
            of_block.push_back(*scores[static_cast<size_t>(j)]);
          }
          row[s] = reference::log_sum_exp(of_block);
        }
        expected.insert(expected.end(), row.begin(), row.end());
      }
    }
  }
  return expected;
}

/// bf16 rounds the weights and their gradients too, besides the results.
double tolerance_of(DType dtype) {
  return dtype == DType::kBF16 ? 2e-5 : 1e-11;
}

TEST(SparseAttention, AgreesWithTheDefinition) {
  for (const DType dtype : support::dtypes()) {
    for (Case c : cases()) {
      c.dtype = dtype;
      const Sparse x(c);
      x.run();
      const Attended attended = x.attended();
      const auto gates = attended.flat_gates<double>();
      const auto input = x.input<double>();
      const auto gate = attended.log_gate(gates);
      const auto expected = reference::attention(x.segments, x.shape, input, gate);
      const auto gradient = reference::attention_gradient(x.segments, x.shape, input,
                                                          support::to_doubles(x.d_o), gate);
      const std::string which = concat(name_of(dtype), " d ", c.d, " block ", c.block, ": ");
      const double tolerance = tolerance_of(dtype);
      support::expect_close(x.o, expected.o, tolerance, which + "o");
      support::expect_close(x.lse, expected.lse, 1e-12, which + "lse");
      support::expect_close(x.block_lse, expected_block_lse(x, attended), 1e-12,
                            which + "block_lse");
      support::expect_close(x.dq, gradient.dq, 2 * tolerance, which + "dq");
      support::expect_close(x.dk, gradient.dk, 2 * tolerance, which + "dk");
      support::expect_close(x.dv, gradient.dv, tolerance, which + "dv");
      support::expect_close(x.dlog_gate, expected_dlog_gate(x, attended, gradient), 2 * tolerance,
                            which + "dlog_gate");
      if (c.sink_logits) {
        support::expect_close(x.added_to_sink_logits(), gradient.dsink_logits, tolerance,
                              which + "dsink_logits");
      }
    }
  }
}

TEST(SparseAttention, BackwardIsTheGradientOfForward) {
  const Sparse x({{67}, 16, 2, 1, 8, {0, 1, 2}, 0.7, true});
  x.run();
  const Attended attended = x.attended();
  const auto gates = attended.flat_gates<Complex>();
  const auto weights = support::to_doubles(x.d_o);
  const auto loss = [&](const AttentionInput<Complex>& input, const std::vector<Complex>& g) {
    return reference::weighted_sum(
        weights, reference::attention(x.segments, x.shape, input, attended.log_gate(g)).o);
  };
  const auto gradient_of = [&](std::vector<Complex> AttentionInput<Complex>::*member,
                               const Tensor& tensor) {
    AttentionInput<Complex> input = x.input<Complex>();
    return reference::complex_step_gradient(support::to_doubles(tensor),
                                            [&](const std::vector<Complex>& changed) {
                                              input.*member = changed;
                                              return loss(input, gates);
                                            });
  };
  support::expect_close(x.dq, gradient_of(&AttentionInput<Complex>::q, x.q), 1e-11, "dq");
  support::expect_close(x.dk, gradient_of(&AttentionInput<Complex>::k, x.k), 1e-11, "dk");
  support::expect_close(x.dv, gradient_of(&AttentionInput<Complex>::v, x.v), 1e-11, "dv");
  support::expect_close(x.added_to_sink_logits(),
                        gradient_of(&AttentionInput<Complex>::sink_logits, x.sink_logits), 1e-11,
                        "dsink_logits");
  const auto by_gate = reference::complex_step_gradient(
      attended.flat_gates<double>(),
      [&](const std::vector<Complex>& changed) { return loss(x.input<Complex>(), changed); });
  support::expect_close(x.dlog_gate, by_gate, 1e-11, "dlog_gate");
}

/// o and lse of dense attention over the same operands, and its gradients.
struct Dense {
  explicit Dense(const Sparse& x)
      : o(x.o.dtype(), x.q.shape()),
        lse(DType::kF32, x.lse.shape()),
        dq(x.o.dtype(), x.q.shape()),
        dk(x.o.dtype(), x.k.shape()),
        dv(x.o.dtype(), x.k.shape()) {
    Stream stream(Device{}, 1);
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

TEST(SparseAttention, ChoosingEverythingIsFullCausalAttention) {
  for (const int64_t block : {16, 64, 128}) {
    for (const double strength : {0.0, 0.7, kAlmostOne}) {
      const Sparse x({{400, 30}, block, 4, 2, 32, {1, 2, 1000}, strength, false});
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

TEST(SparseAttention, DoesNotDependOnThreads) {
  for (const DType dtype : support::dtypes()) {
    support::expect_same_on_any_threads([&](Stream& stream) {
      Sparse x({{600, 5, 77}, 16, 6, 3, 24, {1, 2, 3}, 0.9, true, dtype});
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

TEST(SparseAttention, ASegmentDoesNotDependOnTheOthers) {
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

TEST(SparseAttention, DoesNotSeeTheFuture) {
  for (const DType dtype : support::dtypes()) {
    const Case c{{131}, 16, 4, 2, 16, {1, 1, 2}, 0.9, true, dtype};
    const Sparse before(c);
    before.run(1, false);
    for (int64_t changed = 0; changed < 131; ++changed) {
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

/// The largest change of the last token's output when its k-th and (k+1)-th block swap places.
double jump(double strength) {
  Case c{{128}, 16, 1, 1, 8, {0, 1, 1}, strength, false};
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

TEST(SparseAttention, IsContinuousWhereChoicesSwap) {
  EXPECT_GT(jump(0), 1e-2);
  EXPECT_LT(jump(kAlmostOne), 2e-3);
}

TEST(SparseAttention, GateGradientsAndSinkCancelInEveryRow) {
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

TEST(SparseAttention, WhatIsDroppedBoundsTheError) {
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

TEST(SparseAttention, BlockLseOfFarAwayBlocks) {
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

TEST(SparseAttention, SaysWhatIsWrong) {
  const Sparse x({{100}, 16, 2, 1, 16, {1, 1, 3}, 0.5, true});
  const Attended attended = x.attended();
  const support::Selection owner = reference::selection_of(x.scores, attended);
  const BlockSelection selection = owner.view();
  const reference::Lists list_owner(x.scores, attended);
  const BlockLists lists = list_owner.view();
  Stream stream(Device{DeviceKind::kPlan});
  const auto forward = [&](const auto& change) {
    SparseAttentionForward a = x.forward(selection, lists);
    change(a);
    sparse_attention_forward(stream, a);
  };
  support::expect_error([&] { forward([](auto& a) { a.rule.kept = 4; }); },
                        "sparse_attention_forward: the rule keeps 4 blocks, the selection has 3");
  support::expect_error([&] { forward([](auto& a) { a.ramp.strength = 1; }); },
                        "sparse_attention_forward: strength is 1, expected 0 to 1 - 2^-10");
  support::expect_error([&] { forward([&](auto& a) { a.ramp.widths = x.sink_logits; }); },
                        "widths is f32 [2], expected f32 [groups] = [1]");
  support::expect_error([&] { forward([&](auto& a) { a.block_lse = x.lse; }); },
                        "block_lse is f32 [2, 100], expected f32 [groups, tokens, g, k]");
  support::expect_error(
      [&] {
        SparseAttentionBackward a = x.gradient(selection, lists);
        a.dlog_gate = x.lse;
        sparse_attention_backward(stream, a);
      },
      "dlog_gate is f32 [2, 100], expected f32 [groups, tokens, k] = [1, 100, 3]");
}

TEST(SparseAttention, ListsMustBelongToTheSelection) {
  const Sparse x({{100}, 16, 2, 1, 16, {0, 1, 3}, 0.5, true});
  const Attended attended = x.attended();
  const support::Selection owner = reference::selection_of(x.scores, attended);
  const BlockSelection selection = owner.view();
  const reference::Lists list_owner(x.scores, attended);
  const BlockLists lists = list_owner.view();
  owner.row_of_blocks(0, 99)[0] += 1;
  Stream stream(Device{}, 1);
  support::expect_error([&] { sparse_attention_forward(stream, x.forward(selection, lists)); },
                        "the lists say that token 99 chose block");
}

}  // namespace
}  // namespace tessera
