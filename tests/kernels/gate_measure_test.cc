#include "kernels/gate_measure.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/attention.h"

#include "tests/reference/gate_measure.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

using reference::Figures;
using reference::ListMeasures;
using reference::RowMeasures;
using support::Sparse;
using support::SparseCase;
using support::Tensor;

/// Segments as documents of one sequence.
const SparseCase kDocuments{{180, 0, 1, 133}, 16, 4, 2, 24, {1, 2, 3}, 0.7, true};

Tensor samples_of(const std::vector<int64_t>& rows, const std::vector<int64_t>& positions) {
  std::vector<int32_t> pairs;
  for (size_t i = 0; i < rows.size(); ++i) {
    pairs.push_back(static_cast<int32_t>(rows[i]));
    pairs.push_back(static_cast<int32_t>(positions[i]));
  }
  const Tensor flat = support::from_ints(pairs);
  Tensor samples(DType::kI32, {std::ssize(rows), 2});
  support::set_elements(samples.view(), support::elements<int32_t>(flat.view()));
  return samples;
}

void expect_figures(const Tensor& found, int64_t group, const Figures& expected, int64_t first,
                    int64_t end, double before = 0) {
  const auto all = support::to_doubles(found);
  for (int64_t i = 0; i < GateFigures::kSize; ++i) {
    const double value = all[static_cast<size_t>(group * GateFigures::kSize + i)];
    const double wanted =
        before + (i >= first && i < end && expected.contains(i) ? expected.at(i) : 0);
    EXPECT_NEAR(value, wanted, 2e-5 * std::max(1.0, std::abs(wanted)))
        << "group " << group << ", figure " << i;
  }
}

void expect_map(const Tensor& map, int64_t c, RowMeasures& expected) {
  const auto found = support::to_doubles(map);
  for (int64_t row = 0; row < kMapBins; ++row) {
    for (int64_t bin = 0; bin <= kMapBins; ++bin) {
      const auto at = static_cast<size_t>((c * kMapBins + row) * (kMapBins + 1) + bin);
      EXPECT_NEAR(found[at], (expected.map[{row, bin}]), 1e-5) << row << ", " << bin;
    }
  }
}

const std::vector<int64_t> kRows{0, 5, 64, 130, 179, 180, 181, 250, 313, 313};

void expect_rows(const Sparse& x, bool gated) {
  const reference::Attended chosen = x.attended();
  const support::Selection owner = reference::selection_of(x.scores, chosen);
  const BlockSelection selection = owner.view();
  const reference::Lists lists(x.scores, chosen);
  Stream stream(support::device(), 2);
  if (gated) {
    sparse_attention_forward(stream, x.forward(selection, lists.view()));
  } else {
    attention_forward(stream, {.o = x.o,
                               .lse = x.lse,
                               .q = x.q,
                               .k = x.k,
                               .v = x.v,
                               .grid = x.segments.grid(),
                               .groups = x.groups,
                               .window = 1000,
                               .sink_tokens = 0,
                               .scale = static_cast<float>(x.shape.scale),
                               .sink_logits = x.sink_logits});
  }
  const Tensor figures = support::filled(DType::kF32, {x.c.kv_heads, GateFigures::kSize}, 3);
  const Tensor map(DType::kF32, {x.c.kv_heads, kMapBins, kMapBins + 1});
  MeasureGateRows a{.figures = figures,
                    .map = map,
                    .samples = {},
                    .sequence_length = x.segments.tokens(),
                    .q = x.q,
                    .k = x.k,
                    .lse = x.lse,
                    .grid = x.segments.grid(),
                    .groups = x.groups,
                    .rule = x.c.rule,
                    .scale = static_cast<float>(x.shape.scale),
                    .sink_logits = x.c.sink_logits ? x.sink_logits.view() : TensorView()};
  if (gated) {
    a.selection = selection;
    a.block_lse = x.block_lse;
    a.ramp = {static_cast<float>(x.c.strength), x.widths};
  }
  const Tensor samples = samples_of(kRows, kRows);
  a.samples = samples;
  measure_gate_rows(stream, a);
  for (int64_t c = 0; c < x.c.kv_heads; ++c) {
    RowMeasures expected(x);
    expected.add(c, kRows, gated);
    expect_figures(figures, c, expected.figures, 0, GateFigures::kTiles, 3);
    expect_map(map, c, expected);
  }
}

TEST(GateMeasure, RowsAgreeWithTheDefinition) {
  expect_rows(Sparse(kDocuments), true);
}

TEST(GateMeasure, RowsAgreeWithTheDefinitionInBf16AndWithOddShapes) {
  // Blocks of more than a panel of keys, more heads than are worked on at once, no sink.
  SparseCase c{{314}, 80, 11, 1, 8, {0, 1, 1}, 1 - 0x1p-10, false};
  expect_rows(Sparse(c), true);
  c = kDocuments;
  c.dtype = DType::kBF16;
  expect_rows(Sparse(c), true);
}

TEST(GateMeasure, WhileTheGateRestsAllOtherBlocksAreSelected) {
  expect_rows(Sparse(kDocuments), false);
}

// A GPU cuts the keys of such a row into chunks, which begin in the middle of bins.
TEST(GateMeasure, LongRowsAgreeWithTheDefinition) {
  const Sparse x({{300, 4500}, 64, 1, 1, 8, {2, 3, 1}, 0.5, false});
  const std::vector<int64_t> rows{4790, 2400, 700};
  RowMeasures expected(x);
  for (const int64_t i : rows) {
    const auto all = [](int64_t, int64_t, int64_t) -> std::optional<double> { return 0; };
    std::vector<double> logits;
    for (const auto& score :
         reference::attention_scores(x.segments, x.shape, expected.input, 0, i, all)) {
      logits.push_back(*score);
    }
    x.lse.as<float>()[static_cast<size_t>(i)] = static_cast<float>(reference::log_sum_exp(logits));
  }
  expected.add(0, rows, false);
  const Tensor figures(DType::kF32, {1, GateFigures::kSize});
  const Tensor map(DType::kF32, {1, kMapBins, kMapBins + 1});
  const Tensor samples = samples_of(rows, rows);
  Stream stream(support::device(), 2);
  measure_gate_rows(stream, {.figures = figures,
                             .map = map,
                             .samples = samples,
                             .sequence_length = x.segments.tokens(),
                             .q = x.q,
                             .k = x.k,
                             .lse = x.lse,
                             .grid = x.segments.grid(),
                             .groups = x.groups,
                             .rule = x.c.rule,
                             .scale = static_cast<float>(x.shape.scale)});
  expect_figures(figures, 0, expected.figures, 0, GateFigures::kTiles);
  expect_map(map, 0, expected);
}

TEST(GateMeasure, ListsAgreeWithCountingTokenByToken) {
  for (const BlockRule& rule : {BlockRule{1, 2, 3}, BlockRule{0, 1, 2}, BlockRule{2, 1, 20}}) {
    SparseCase shape = kDocuments;
    shape.rule = rule;
    const Sparse x(shape);
    const reference::Lists lists(x.scores, x.attended());
    const int64_t blocks = x.segments.grid().max_blocks();
    const Tensor figures(DType::kF32, {2, GateFigures::kSize});
    const Tensor counts = support::filled(DType::kF32, {2, blocks, 2}, 77);
    Stream stream(support::device(), 2);
    measure_gate_lists(stream, {figures, counts, lists.view(), x.segments.grid(), rule});
    const auto found = support::to_doubles(counts);
    for (int64_t c = 0; c < 2; ++c) {
      ListMeasures expected(x, c);
      expect_figures(figures, c, expected.figures, GateFigures::kTiles, GateFigures::kBlocks);
      for (int64_t b = 0; b < blocks; ++b) {
        const auto at = static_cast<size_t>(2 * (c * blocks + b));
        EXPECT_EQ(found[at], expected.counts[b].first) << "block " << b;
        EXPECT_EQ(found[at + 1], expected.counts[b].second) << "block " << b;
      }
    }
  }
}

TEST(GateMeasure, BlocksAreHotOrNeverSelected) {
  // Too few tokens; never; below half; half; all. The other group: nothing.
  const Tensor counts = support::from_doubles(
      DType::kF32, {2, 5, 2},
      std::vector<double>{63, 0, 64, 0, 100, 49, 100, 50, 70, 70, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0});
  const Tensor figures = support::filled(DType::kF32, {2, GateFigures::kSize}, 1);
  Stream stream(support::device(), 1);
  measure_gate_blocks(stream, {figures, counts});
  expect_figures(figures, 0,
                 {{GateFigures::kBlocks, 4}, {GateFigures::kNever, 1}, {GateFigures::kHot, 2}},
                 GateFigures::kBlocks, GateFigures::kSize, 1);
  expect_figures(figures, 1, {}, 0, 0, 1);
}

TEST(GateMeasure, SaysWhatIsWrong) {
  const Sparse x(kDocuments);
  Stream stream(Device{DeviceKind::kPlan});
  const auto view = [](DType dtype, Shape shape) { return support::plan_view(dtype, shape); };
  MeasureGateRows a{.figures = view(DType::kF32, {2, GateFigures::kSize}),
                    .map = {},
                    .samples = view(DType::kI32, {4, 2}),
                    .sequence_length = 314,
                    .q = x.q,
                    .k = x.k,
                    .lse = x.lse,
                    .grid = x.segments.grid(),
                    .groups = x.groups,
                    .rule = x.c.rule,
                    .scale = 1};
  const auto expect = [&](auto change, const char* message) {
    MeasureGateRows changed = a;
    change(changed);
    support::expect_error([&] { measure_gate_rows(stream, changed); }, message);
  };
  expect(
      [&](auto& c) {
        c.figures = view(DType::kF32, {2, 3});
      },
      "measure_gate_rows: figures is f32 [2, 3], expected f32 [groups, GateFigures::kSize]");
  expect(
      [&](auto& c) {
        c.samples = view(DType::kF32, {4, 2});
      },
      "measure_gate_rows: samples is f32 [4, 2], expected i32 [samples, 2]");
  expect(
      [&](auto& c) {
        c.map = view(DType::kF32, {2, 64, 64});
      },
      "measure_gate_rows: map is f32 [2, 64, 64], expected f32 [groups, 64, 65]");
  expect([](auto& c) { c.sequence_length = 0; },
         "measure_gate_rows: sequence_length is 0, expected at least 1");
  support::expect_error(
      [&] {
        measure_gate_blocks(
            stream, {view(DType::kF32, {2, GateFigures::kSize}), view(DType::kF32, {2, 5, 3})});
      },
      "measure_gate_blocks: counts is f32 [2, 5, 3], expected f32 [groups, max_blocks, 2]");
  Stream device(support::device(), 1);
  const Tensor figures(DType::kF32, {2, GateFigures::kSize});
  const Tensor samples = samples_of({314}, {0});
  a.figures = figures;
  a.samples = samples;
  support::expect_kernel_error([&] { measure_gate_rows(device, a); },
                               "sample 0 is row 314, expected 0 to 313",
                               "measure_gate_rows: a sample is not a row, or not of its sequence");
}

}  // namespace
}  // namespace tessera
