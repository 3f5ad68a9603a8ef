#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <numeric>

#include "tests/reference/attention.h"
#include "tests/reference/complex_step.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"
#include "tests/support/segments.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using reference::AttentionInput;
using reference::AttentionShape;
using reference::Complex;
using support::Segments;
using support::Tensor;

struct Case {
  std::vector<int64_t> lengths;
  int64_t heads;
  int64_t kv_heads;
  int64_t d;
  int64_t window;
  int64_t sink_tokens;
  bool sink_logits;
  DType dtype = DType::kF32;
};

/// Operands and results of one case.
struct Attention {
  explicit Attention(const Case& of)
      : c(of),
        segments(of.lengths, 64),
        shape{of.heads, of.kv_heads, of.d, 1 / std::sqrt(static_cast<double>(of.d))},
        q(support::random_tensor(of.dtype, {segments.tokens(), of.heads, of.d}, 1, 1.5)),
        k(support::random_tensor(of.dtype, {segments.tokens(), of.kv_heads, of.d}, 2)),
        v(support::random_tensor(of.dtype, {segments.tokens(), of.kv_heads, of.d}, 3)),
        d_o(support::random_tensor(of.dtype, {segments.tokens(), of.heads, of.d}, 4)),
        sink_logits(support::random_tensor(DType::kF32, {of.heads}, 5)),
        groups(static_cast<size_t>(of.kv_heads)),
        o(support::filled(of.dtype, q.shape(), 77)),
        lse(support::filled(DType::kF32, {of.heads, segments.tokens()}, 77)),
        dq(support::filled(of.dtype, q.shape(), 77)),
        dk(support::filled(of.dtype, k.shape(), 77)),
        dv(support::filled(of.dtype, k.shape(), 77)),
        delta(DType::kF32, {of.heads, segments.tokens()}),
        dsink_logits(support::filled(DType::kF32, {of.heads}, 1)) {
    std::iota(groups.begin(), groups.end(), 0);
  }

  AttentionForward forward() const {
    return {.o = o,
            .lse = lse,
            .q = q,
            .k = k,
            .v = v,
            .grid = segments.grid(),
            .groups = groups,
            .window = c.window,
            .sink_tokens = c.sink_tokens,
            .scale = static_cast<float>(shape.scale),
            .sink_logits = c.sink_logits ? sink_logits.view() : TensorView()};
  }
  AttentionBackward backward() const {
    return {.dq = dq,
            .dk = dk,
            .dv = dv,
            .delta = delta,
            .d_o = d_o,
            .o = o,
            .lse = lse,
            .q = q,
            .k = k,
            .v = v,
            .grid = segments.grid(),
            .groups = groups,
            .window = c.window,
            .sink_tokens = c.sink_tokens,
            .scale = static_cast<float>(shape.scale),
            .sink_logits = c.sink_logits ? sink_logits.view() : TensorView(),
            .dsink_logits = c.sink_logits ? dsink_logits.view() : TensorView()};
  }
  void run(int threads = 1) const {
    Stream stream(support::device(), threads);
    attention_forward(stream, forward());
    attention_backward(stream, backward());
  }
  template <class T>
  AttentionInput<T> input() const {
    const auto numbers = [](const Tensor& x) { return reference::as<T>(support::to_doubles(x)); };
    return {numbers(q), numbers(k), numbers(v),
            c.sink_logits ? numbers(sink_logits) : std::vector<T>()};
  }
  /// What dsink_logits held before is taken away again.
  std::vector<double> added_to_sink_logits() const {
    std::vector<double> added = support::to_doubles(dsink_logits);
    for (double& x : added) x -= 1;
    return added;
  }

  Case c;
  Segments segments;
  AttentionShape shape;
  Tensor q, k, v, d_o, sink_logits;
  std::vector<int32_t> groups;
  Tensor o, lse, dq, dk, dv, delta, dsink_logits;
};

constexpr int64_t kAll = int64_t{1} << 40;

std::vector<Case> cases() {
  return {
      {{70}, 4, 1, 64, kAll, 0, false},   {{70, 0, 1, 33, 130}, 8, 2, 16, kAll, 0, true},
      {{300}, 2, 2, 8, 100, 3, true},     {{200, 17}, 6, 2, 24, 16, 0, false},
      {{150}, 5, 1, 40, 1, 1, false},     {{90}, 16, 1, 72, 64, 70, true},
      {{90, 64}, 1, 1, 128, 65, 5, true}, {{70}, 2, 1, 256, kAll, 0, true},
      {{150}, 2, 1, 8, 66, 0, false},  // token 128 sees just the last key of the first panel
      {{1}, 1, 1, 8, 1, 0, true},
  };
}

/// bf16 rounds the weights and their gradients too, besides the results.
double tolerance_of(DType dtype) {
  return dtype == DType::kBF16 ? 2e-5 : 1e-11;
}

void expect_definition(const Case& c) {
  const Attention x(c);
  x.run();
  const auto gate = reference::window_gate<double>(x.segments, c.window, c.sink_tokens);
  const auto input = x.input<double>();
  const auto expected = reference::attention(x.segments, x.shape, input, gate);
  const auto gradient =
      reference::attention_gradient(x.segments, x.shape, input, support::to_doubles(x.d_o), gate);
  const std::string which = concat(name_of(c.dtype), " d ", c.d, " window ", c.window, ": ");
  const double tolerance = tolerance_of(c.dtype);
  support::expect_close(x.o, expected.o, tolerance, which + "o");
  support::expect_close(x.lse, expected.lse, 1e-12, which + "lse");
  support::expect_close(x.dq, gradient.dq, 2 * tolerance, which + "dq");
  support::expect_close(x.dk, gradient.dk, 2 * tolerance, which + "dk");
  support::expect_close(x.dv, gradient.dv, tolerance, which + "dv");
  if (c.sink_logits) {
    support::expect_close(x.added_to_sink_logits(), gradient.dsink_logits, 5 * tolerance,
                          which + "dsink_logits");
  }
}

TEST(Attention, AgreesWithTheDefinition) {
  for (const Case& c : cases()) expect_definition(c);
}

TEST(Attention, AgreesWithTheDefinitionInBf16) {
  for (Case c : cases()) {
    c.dtype = DType::kBF16;
    expect_definition(c);
  }
}

// Heads of 64 and 128 numbers in groups of 2, 4 and 8: what kernels for one kind of GPU take.
// Several turns of their rings, segments that end in the midst of panels, sinks in one tile of keys
// and in two.
TEST(Attention, AgreesWithTheDefinitionInWholeGroups) {
  for (const Case& c : {Case{{330, 37}, 4, 1, 128, 100, 5, true, DType::kBF16},
                        Case{{200, 17, 90}, 16, 2, 64, kAll, 0, false, DType::kBF16},
                        Case{{300}, 4, 2, 64, 70, 200, true, DType::kBF16}}) {
    expect_definition(c);
  }
}

TEST(Attention, BackwardIsTheGradientOfForward) {
  for (const Case& c : {Case{{21, 6}, 4, 2, 8, kAll, 0, true}, Case{{27}, 3, 1, 8, 9, 2, true}}) {
    const Attention x(c);
    x.run();
    const auto weights = support::to_doubles(x.d_o);
    const auto gradient_of = [&](std::vector<Complex> AttentionInput<Complex>::*member,
                                 const Tensor& tensor) {
      AttentionInput<Complex> input = x.input<Complex>();
      const auto gate = reference::window_gate<Complex>(x.segments, c.window, c.sink_tokens);
      return reference::complex_step_gradient(
          support::to_doubles(tensor), [&](const std::vector<Complex>& changed) {
            input.*member = changed;
            return reference::weighted_sum(
                weights, reference::attention(x.segments, x.shape, input, gate).o);
          });
    };
    support::expect_close(x.dq, gradient_of(&AttentionInput<Complex>::q, x.q), 1e-11, "dq");
    support::expect_close(x.dk, gradient_of(&AttentionInput<Complex>::k, x.k), 1e-11, "dk");
    support::expect_close(x.dv, gradient_of(&AttentionInput<Complex>::v, x.v), 1e-11, "dv");
    support::expect_close(x.added_to_sink_logits(),
                          gradient_of(&AttentionInput<Complex>::sink_logits, x.sink_logits), 1e-11,
                          "dsink_logits");
  }
}

TEST(Attention, DoesNotDependOnThreads) {
  for (const DType dtype : support::dtypes()) {
    support::expect_same_on_any_threads([&](Stream& stream) {
      Attention x({{200, 5, 77}, 4, 2, 24, 90, 2, true, dtype});
      attention_forward(stream, x.forward());
      attention_backward(stream, x.backward());
      return support::tensors(std::move(x.o), std::move(x.lse), std::move(x.dq), std::move(x.dk),
                              std::move(x.dv), std::move(x.dsink_logits));
    });
  }
}

/// Rows [first, first + count) of the tokens.
ConstTensorView tokens_of(const Tensor& x, int64_t first, int64_t count) {
  return x.view().rows(first, count);
}

TEST(Attention, ASegmentDoesNotDependOnTheOthers) {
  for (const DType dtype : support::dtypes()) {
    const Attention together({{50, 0, 150, 20}, 4, 2, 24, 40, 2, false, dtype});
    together.run();
    Attention alone({{150}, 4, 2, 24, 40, 2, false, dtype});
    const auto copy = [](const Tensor& to, const Tensor& from) {
      const ConstTensorView rows = tokens_of(from, 50, 150);
      std::memcpy(to.view().data(), rows.data(), static_cast<size_t>(rows.bytes()));
    };
    copy(alone.q, together.q);
    copy(alone.k, together.k);
    copy(alone.v, together.v);
    copy(alone.d_o, together.d_o);
    alone.run();
    support::expect_same_bits(alone.o, tokens_of(together.o, 50, 150), "o");
    support::expect_same_bits(alone.dq, tokens_of(together.dq, 50, 150), "dq");
    support::expect_same_bits(alone.dk, tokens_of(together.dk, 50, 150), "dk");
    support::expect_same_bits(alone.dv, tokens_of(together.dv, 50, 150), "dv");
  }
}

TEST(Attention, DoesNotSeeTheFuture) {
  for (const DType dtype : support::dtypes()) {
    const Attention before({{100}, 4, 2, 16, 50, 3, true, dtype});
    before.run();
    const int64_t step = support::device().kind == DeviceKind::kGpu ? 9 : 1;
    for (int64_t changed = 0; changed < 100; changed += step) {
      const Attention after(before.c);
      for (const Tensor* x : {&after.q, &after.k, &after.v}) {
        const TensorView row = x->view().rows(changed, 1);
        const Tensor other = support::random_tensor(dtype, row.shape(), 99, 9);
        std::memcpy(row.data(), other.view().data(), static_cast<size_t>(row.bytes()));
      }
      Stream stream(support::device(), 1);
      attention_forward(stream, after.forward());
      support::expect_same_bits(tokens_of(after.o, 0, changed), tokens_of(before.o, 0, changed),
                                concat("token ", changed, " changed"));
    }
  }
}

TEST(Attention, LeavesOtherGroupsAlone) {
  Attention x({{40}, 6, 3, 8, 20, 0, true});
  x.groups = {1};
  x.run();
  const auto o = x.o.as<float>();
  const auto dk = x.dk.as<float>();
  for (int64_t token = 0; token < 40; ++token) {
    for (int64_t head = 0; head < 6; ++head) {
      const bool mine = head / 2 == 1;
      EXPECT_EQ(o[reference::at(token, head, 6, 8)] == 77, !mine) << head;
      EXPECT_EQ(x.dq.as<float>()[reference::at(token, head, 6, 8)] == 77, !mine) << head;
      EXPECT_EQ(dk[reference::at(token, head / 2, 3, 8)] == 77, !mine) << head;
      EXPECT_EQ(x.lse.as<float>()[static_cast<size_t>(head * 40 + token)] == 77, !mine) << head;
    }
  }
  for (size_t head = 0; head < 6; ++head) {
    EXPECT_EQ(x.dsink_logits.as<float>()[head] == 1, head / 2 != 1);
  }
}

TEST(Attention, HugeScoresStayFinite) {
  const Attention x({{100}, 2, 1, 16, kAll, 0, true});
  for (float& value : x.q.as<float>()) value *= 300;
  x.run();
  for (const Tensor* result : {&x.o, &x.dq, &x.dk, &x.dv}) {
    for (const double value : support::to_doubles(*result)) EXPECT_TRUE(std::isfinite(value));
  }
}

TEST(Attention, SaysWhatIsWrong) {
  const Attention x({{40}, 4, 2, 8, 20, 0, true});
  Stream stream(Device{DeviceKind::kPlan});
  const auto forward = [&](const auto& change) {
    AttentionForward a = x.forward();
    change(a);
    attention_forward(stream, a);
  };
  support::expect_error([&] { forward([](auto& a) { a.window = 0; }); },
                        "attention_forward: window is 0, expected at least 1");
  support::expect_error([&] { forward([](auto& a) { a.sink_tokens = -1; }); },
                        "attention_forward: sink_tokens is -1, expected at least 0");
  support::expect_error([&] { forward([](auto& a) { a.scale = 0; }); },
                        "attention_forward: scale is 0, expected a positive number");
  support::expect_error(
      [&] { forward([&](auto& a) { a.k = x.q; }); },
      "attention_forward: v is f32 [40, 2, 8], expected f32 [tokens, kv_heads, d] = [40, 4, 8]");
  support::expect_error(
      [&] { forward([&](auto& a) { a.lse = x.o; }); },
      "attention_forward: lse is f32 [40, 4, 8], expected f32 [heads, tokens] = [4, 40]");
  const std::vector<int32_t> groups{2};
  support::expect_error([&] { forward([&](auto& a) { a.groups = groups; }); },
                        "attention_forward: group is 2, expected 0 to 1");
  const auto backward = [&](const auto& change) {
    AttentionBackward a = x.backward();
    change(a);
    attention_backward(stream, a);
  };
  support::expect_error([&] { backward([](auto& a) { a.dsink_logits = {}; }); },
                        "attention_backward: sink_logits is given, but dsink_logits is missing");
  support::expect_error([&] { backward([&](auto& a) { a.dk = x.dq; }); },
                        "attention_backward: dk is f32 [40, 4, 8], expected f32 "
                        "[tokens, kv_heads, d] = [40, 2, 8]");
}

}  // namespace
}  // namespace tessera
