#include "kernels/gate_backward.h"

#include <gtest/gtest.h>

#include <functional>

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

struct RampProblem {
  RampProblem(const std::vector<int64_t>& lengths, const BlockRule& rule)
      : segments(lengths, 16),
        selection(support::choose_at_random(segments, rule, kGroups, 5)),
        dlog_gate(support::random_tensor(DType::kF32, {kGroups, segments.tokens(), rule.kept}, 6)) {
    widths.as<float>()[0] = 0.7f;
    widths.as<float>()[1] = 2.1f;
  }

  Segments segments;
  Selection selection;
  Tensor dlog_gate;
  Tensor widths{DType::kF32, {kGroups}};
};

struct RampResult {
  Tensor dscores;
  Tensor dwidths;
};

/// Both start as ones.
RampResult run_ramp(Stream& stream, const RampProblem& p, float strength) {
  RampResult out{support::filled(DType::kF32, p.selection.view().scores.shape(), 1),
                 support::filled(DType::kF32, {kGroups}, 1)};
  ramp_backward(stream, {.dscores = out.dscores.view(),
                         .dwidths = out.dwidths.view(),
                         .dlog_gate = p.dlog_gate.view(),
                         .selection = p.selection.view(),
                         .ramp = {.strength = strength, .widths = p.widths.view()}});
  return out;
}

TEST(RampBackward, IsTheGradientOfTheLogGates) {
  Stream stream{support::device(), 2};
  const RampProblem p({0, 37, 190, 1}, {.sink_blocks = 1, .window_blocks = 1, .kept = 3});
  const int64_t kept = p.selection.kept();
  for (const float strength : {0.0f, 0.3f, 0.7f, 1 - 0x1p-10f}) {
    const RampResult found = run_ramp(stream, p, strength);
    const std::vector<double> dlog_gate = support::to_doubles(p.dlog_gate);
    std::vector<double> dscores(static_cast<size_t>(found.dscores.view().elements()), 1);
    std::vector<double> dwidths(kGroups, 1);
    int64_t on_ramp = 0;
    for (int64_t row = 0; row < kGroups * p.segments.tokens(); ++row) {
      if (p.selection.row_of_blocks(0, row)[static_cast<size_t>(kept)] < 0) continue;
      const auto scores = p.selection.row_of_scores(0, row);
      // The variables: k scores, the runner-up's, the width.
      std::vector<double> at(scores.begin(), scores.end());
      const auto c = static_cast<size_t>(row / p.segments.tokens());
      at.push_back(static_cast<double>(p.widths.as<float>()[c]));
      const std::vector<double> weights = reference::row_of(dlog_gate, row, kept);
      const auto gradient = reference::complex_step_gradient(at, [&](const auto& x) {
        const std::vector<Complex> z(x.begin(), x.begin() + kept);
        const auto k = static_cast<size_t>(kept);
        return reference::weighted_sum(weights, reference::log_gates(z, x[k], strength, x[k + 1]));
      });
      for (int64_t s = 0; s <= kept; ++s) {
        dscores[static_cast<size_t>(row * (kept + 1) + s)] += gradient[static_cast<size_t>(s)];
        on_ramp += s < kept && gradient[static_cast<size_t>(s)] != 0;
      }
      dwidths[c] += gradient[static_cast<size_t>(kept + 1)];
    }
    EXPECT_EQ(on_ramp > 100, strength > 0) << on_ramp << " choices on the ramp";
    support::expect_close(found.dscores, dscores, 1e-11, "dscores");
    support::expect_close(found.dwidths, dwidths, 1e-11, "dwidths");
  }
}

TEST(RampBackward, AnyNumberOfThreadsGivesTheSameBits) {
  const RampProblem p({3000}, {.sink_blocks = 1, .window_blocks = 1, .kept = 3});
  support::expect_same_on_any_threads([&](Stream& stream) {
    RampResult found = run_ramp(stream, p, 0.5f);
    return support::tensors(std::move(found.dscores), std::move(found.dwidths));
  });
}

TEST(RampBackward, SaysWhatIsWrong) {
  const RampProblem p({100}, {.sink_blocks = 0, .window_blocks = 1, .kept = 2});
  Stream stream{support::device()};
  const RampResult out = run_ramp(stream, p, 0.5f);
  const auto expect = [&](const std::function<void(RampBackward&)>& change,
                          const std::string& sentence) {
    RampBackward wrong{.dscores = out.dscores.view(),
                       .dwidths = out.dwidths.view(),
                       .dlog_gate = p.dlog_gate.view(),
                       .selection = p.selection.view(),
                       .ramp = {.strength = 0.5f, .widths = p.widths.view()}};
    change(wrong);
    support::expect_error([&] { ramp_backward(stream, wrong); }, sentence);
  };
  expect([](auto& x) { x.ramp.strength = 1; },
         "ramp_backward: strength is 1, expected 0 to 1 - 2^-10");
  expect(
      [](auto& x) {
        x.dlog_gate = support::plan_view(DType::kF32, {2, 100, 3});
      },
      "ramp_backward: dlog_gate is f32 [2, 100, 3], expected f32 [groups, tokens, k] = "
      "[2, 100, 2]");
  expect([](auto& x) { x.dwidths = support::plan_view(DType::kF32, {1}); },
         "ramp_backward: dwidths is f32 [1], expected f32 [groups] = [2]");
  expect([](auto& x) { x.ramp.widths = {}; },
         "ramp_backward: ramp.widths is f32 [], expected f32 [groups] = [2]");
  expect(
      [](auto& x) {
        x.dscores = support::plan_view(DType::kBF16, {2, 100, 3});
      },
      "ramp_backward: dscores is bf16 [2, 100, 3], expected f32 [groups, tokens, k + 1] = "
      "[2, 100, 3]");
}

struct ScoreProblem {
  ScoreProblem(const std::vector<int64_t>& lengths, const BlockRule& rule, int64_t keys_per_block,
               int64_t dim)
      : segments(lengths, 16),
        gate_keys(keys_per_block),
        gate_dim(dim),
        selection(kGroups, segments.tokens(), rule.kept),
        qt(support::random_tensor(DType::kF32, {kGroups, segments.tokens(), dim}, 1)),
        kt(support::random_tensor(
            DType::kF32, {kGroups, segments.grid().max_blocks() * keys_per_block, dim}, 2)),
        dscores(support::random_tensor(DType::kF32, selection.view().scores.shape(), 3)) {
    Stream stream{support::device()};
    score_select(stream, {.selection = selection.view(),
                          .qt = qt.view(),
                          .kt = kt.view(),
                          .grid = segments.grid(),
                          .rule = rule,
                          .gate_keys = gate_keys});
  }

  Segments segments;
  int64_t gate_keys;
  int64_t gate_dim;
  Selection selection;
  Tensor qt;
  Tensor kt;
  Tensor dscores;
};

struct ScoreResult {
  Tensor dqt;
  Tensor dkt;
};

ScoreResult run_scores(Stream& stream, const ScoreProblem& p) {
  ScoreResult out{support::filled(DType::kF32, p.qt.shape(), 77),
                  support::filled(DType::kF32, p.kt.shape(), 77)};
  score_backward(stream, {.dqt = out.dqt.view(),
                          .dkt = out.dkt.view(),
                          .dscores = p.dscores.view(),
                          .selection = p.selection.view(),
                          .qt = p.qt.view(),
                          .kt = p.kt.view(),
                          .grid = p.segments.grid(),
                          .gate_keys = p.gate_keys});
  return out;
}

/// sum over all slots of dscores * z: its gradient is what score_backward computes.
Complex weighted_scores(const ScoreProblem& p, const std::vector<Complex>& qt,
                        const std::vector<Complex>& kt) {
  Complex sum = 0;
  const auto slots = static_cast<size_t>(p.selection.kept() + 1);
  for (int64_t row = 0; row < kGroups * p.segments.tokens(); ++row) {
    const int64_t c = row / p.segments.tokens();
    const int64_t token = row % p.segments.tokens();
    const int64_t first =
        c * p.segments.grid().max_blocks() + p.segments.first_block(p.segments.segment(token));
    for (size_t s = 0; s < slots; ++s) {
      const int64_t b = p.selection.row_of_blocks(0, row)[s];
      if (b < 0) continue;
      const Complex z =
          reference::gate_score(reference::row_of(qt, row, p.gate_dim),
                                reference::row_of(kt, first + b, p.gate_keys * p.gate_dim));
      const float weight = p.dscores.as<float>()[static_cast<size_t>(row) * slots + s];
      sum += static_cast<double>(weight) * z;
    }
  }
  return sum;
}

void expect_gradient(const ScoreProblem& p) {
  Stream stream{support::device(), 2};
  const ScoreResult found = run_scores(stream, p);
  const std::vector<double> qt = support::to_doubles(p.qt);
  const std::vector<double> kt = support::to_doubles(p.kt);
  const auto dqt = reference::complex_step_gradient(qt, [&](const std::vector<Complex>& x) {
    return weighted_scores(p, x, reference::as<Complex>(kt));
  });
  const auto dkt = reference::complex_step_gradient(kt, [&](const std::vector<Complex>& x) {
    return weighted_scores(p, reference::as<Complex>(qt), x);
  });
  support::expect_close(found.dqt, dqt, 1e-11, "dqt");
  support::expect_close(found.dkt, dkt, 1e-11, "dkt");
}

TEST(ScoreBackward, IsTheGradientOfTheScores) {
  for (const int64_t gate_keys : {1, 4}) {
    for (const int64_t kept : {2, 20}) {
      const BlockRule rule{.sink_blocks = 1, .window_blocks = 1, .kept = kept};
      expect_gradient({{0, 37, 90, 1}, rule, gate_keys, 3});
    }
  }
}

TEST(ScoreBackward, ReachesEveryBlockOfALongSegment) {
  expect_gradient({{40, 530}, {.sink_blocks = 0, .window_blocks = 1, .kept = 1}, 1, 1});
}

// Long enough for several chunks of tokens, and wide enough for two parts of the columns.
TEST(ScoreBackward, OfLongSegmentsAndWideKeysIsTheSameOnTheProcessor) {
  for (const int64_t gate_keys : {1, 2}) {
    for (const auto& [tokens, dim] : {std::pair<int64_t, int64_t>{700, 9}, {60, 140}}) {
      const BlockRule rule{.sink_blocks = 1, .window_blocks = 1, .kept = 3};
      const ScoreProblem p({tokens / 2, 0, tokens}, rule, gate_keys, dim);
      Stream stream{support::device()};
      Stream processor{Device{}};
      const ScoreResult found = run_scores(stream, p);
      const ScoreResult expected = run_scores(processor, p);
      support::expect_close(found.dqt, support::to_doubles(expected.dqt), 1e-12, "dqt");
      support::expect_close(found.dkt, support::to_doubles(expected.dkt), 1e-12, "dkt");
    }
  }
}

TEST(ScoreBackward, AnyNumberOfThreadsGivesTheSameBits) {
  const int64_t tokens = support::device().kind == DeviceKind::kGpu ? 300 : 1500;
  for (const int64_t gate_keys : {1, 2}) {
    const ScoreProblem p({100, tokens}, {.sink_blocks = 1, .window_blocks = 2, .kept = 5},
                         gate_keys, 20);
    support::expect_same_on_any_threads([&](Stream& stream) {
      ScoreResult found = run_scores(stream, p);
      return support::tensors(std::move(found.dqt), std::move(found.dkt));
    });
  }
}

TEST(ScoreBackward, SaysWhatIsWrong) {
  const ScoreProblem p({40}, {.sink_blocks = 0, .window_blocks = 1, .kept = 2}, 1, 8);
  Stream stream{support::device()};
  const ScoreResult out = run_scores(stream, p);
  const auto expect = [&](const std::function<void(ScoreBackward&)>& change,
                          const std::string& sentence) {
    ScoreBackward wrong{.dqt = out.dqt.view(),
                        .dkt = out.dkt.view(),
                        .dscores = p.dscores.view(),
                        .selection = p.selection.view(),
                        .qt = p.qt.view(),
                        .kt = p.kt.view(),
                        .grid = p.segments.grid(),
                        .gate_keys = 1};
    change(wrong);
    support::expect_error([&] { score_backward(stream, wrong); }, sentence);
  };
  expect([](auto& x) { x.gate_keys = 2; },
         "score_backward: kt is f32 [2, 3, 8], expected f32 "
         "[groups, max_blocks * gate_keys, gate_dim] = [2, 6, 8]");
  expect(
      [](auto& x) {
        x.dqt = support::plan_view(DType::kBF16, {2, 40, 8});
      },
      "score_backward: dqt is bf16 [2, 40, 8], expected f32 [groups, tokens, gate_dim] = "
      "[2, 40, 8]");
  expect(
      [](auto& x) {
        x.dkt = support::plan_view(DType::kF32, {2, 40, 8});
      },
      "score_backward: dkt is f32 [2, 40, 8], expected f32 "
      "[groups, max_blocks * gate_keys, gate_dim] = [2, 3, 8]");
  expect(
      [](auto& x) {
        x.dscores = support::plan_view(DType::kF32, {2, 40, 2});
      },
      "score_backward: dscores is f32 [2, 40, 2], expected f32 [groups, tokens, k + 1] = "
      "[2, 40, 3]");
}

}  // namespace
}  // namespace tessera
