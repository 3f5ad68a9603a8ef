#include "runtime/report/warnings.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace tessera {
namespace {

/// A run of 1000 steps without anything to tell.
StepTable good_steps() {
  StepTable table;
  for (int64_t step = 1; step <= 1000; ++step) {
    table.steps.push_back(step);
    table.stages.emplace_back(step <= 500 ? "dense" : "tuning");
    const auto x = static_cast<double>(step);
    table.columns["loss"].push_back(2 + 3 * std::exp(-x / 200) + 0.05 * std::sin(7 * x));
    table.columns["validation_loss"].push_back(step % 100 == 0 ? 2 + 3 * std::exp(-x / 200)
                                                               : std::nan(""));
    table.columns["skipped"].push_back(0);
    table.columns["ms"].push_back(100);
    table.columns["data_wait"].push_back(0.01);
    table.columns["tokens_per_second"].push_back(step <= 500 ? 8000 : 4000);
    table.columns["memory_gib"].push_back(4);
    table.columns["memory_share"].push_back(0.3);
  }
  return table;
}

std::string told(const std::vector<RunWarning>& warnings) {
  std::string all;
  for (const RunWarning& warning : warnings) all += warning.text + "\n";
  return all;
}

/// What is told of the good run after `spoil` has changed a column, from some step on.
std::string spoiled(const char* column, int64_t from, const std::function<double(double)>& spoil) {
  StepTable table = good_steps();
  for (size_t i = static_cast<size_t>(from) - 1; i < table.rows(); ++i) {
    table.columns[column][i] = spoil(table.columns[column][i]);
  }
  return told(warnings_of_steps(table));
}

TEST(StepWarnings, AGoodRunHasNone) {
  EXPECT_EQ(told(warnings_of_steps(good_steps())), "");
  EXPECT_EQ(told(warnings_of_steps({})), "");
}

TEST(StepWarnings, SayWhatIsWrong) {
  const auto plus = [](double by) { return [by](double value) { return value + by; }; };
  const auto is = [](double what) { return [what](double) { return what; }; };
  EXPECT_EQ(spoiled("loss", 951, plus(0.5)),
            "the loss has risen since step 950: from 2.031 to 2.521\n");
  EXPECT_EQ(spoiled("loss", 1000, is(std::nan(""))),
            "the loss was not finite in 1 step, the last is step 1000\n");
  EXPECT_EQ(spoiled("skipped", 999, is(1)),
            "2 steps were skipped of 1000 (spikes of the loss or the gradient), the last is step "
            "1000\n");
  EXPECT_EQ(spoiled("validation_loss", 800, plus(0.2)),
            "the validation loss was lowest at step 700, 2.091, and is 2.220 now\n");
  EXPECT_TRUE(spoiled("data_wait", 501, is(0.12)).starts_with("12% of the time waits for data"));
  EXPECT_TRUE(spoiled("tokens_per_second", 801, is(2000))
                  .starts_with("tokens per second have fallen within the stage, by a factor of "
                               "2.0: from 4000 to 2000"));
  EXPECT_EQ(spoiled("memory_gib", 801, is(8)),
            "the memory of rank 0 grows: 4.00 GiB in the middle of the run, 8.00 GiB now\n");
  EXPECT_EQ(spoiled("memory_share", 1000, is(0.95)),
            "95% of the host's memory is taken by rank 0 alone\n");
}

TEST(StepWarnings, NoiseIsNoRise) {
  EXPECT_EQ(spoiled("loss", 951, [](double value) { return value + 0.02; }), "");
}

GateRow good_row(int64_t layer) {
  GateRow row{.step = 500, .gate = {}};
  row.gate.layer = layer;
  row.gate.kept_blocks = 4;
  row.gate.kept_mass = 0.98;
  row.gate.sink_mass = 0.2;
  row.gate.window_mass = 0.5;
  row.gate.selected_mass = 0.3;
  row.gate.choosing_rows = 60;
  row.gate.waste = 1.5;
  row.gate.blocks = 32;
  row.gate.never_selected = 2;
  row.gate.hot = 1;
  return row;
}

std::string told_of(const std::function<void(GateMeasure&)>& spoil) {
  GateTable table;
  table.gates = {good_row(2), good_row(3)};
  table.gates[0].step = 400;
  spoil(table.gates[1].gate);
  return told(warnings_of_gates(table));
}

TEST(GateWarnings, SayWhatAGroupDoes) {
  EXPECT_EQ(told_of([](GateMeasure&) {}), "");
  EXPECT_EQ(told_of([](GateMeasure& g) {
              g.sink_mass = 0.9;
              g.sink_logit_mass = 0.05;
            }),
            "layer 3 group 0 attends almost only to the sink (95% of its mass)\n");
  EXPECT_EQ(
      told_of([](GateMeasure& g) {
        g.window_mass = 0.79;
        g.selected_mass = 0.01;
      }),
      "layer 3 group 0 hardly looks beyond its window (1% of its mass is on chosen blocks)\n");
  EXPECT_EQ(told_of([](GateMeasure& g) { g.kept_mass = 0.8; }),
            "layer 3 group 0 keeps only 80% of the mass of full attention with 4 blocks\n");
  EXPECT_EQ(told_of([](GateMeasure& g) { g.never_selected = 20; }),
            "layer 3 group 0 never chooses 20 of its 32 blocks\n");
  EXPECT_EQ(told_of([](GateMeasure& g) { g.hot = 12; }),
            "layer 3 group 0 chooses 12 of its 32 blocks nearly always\n");
  EXPECT_EQ(told_of([](GateMeasure& g) {
              g.hot = 12;
              g.frequency.fill(0.5);
            }),
            "");
  EXPECT_EQ(told_of([](GateMeasure& g) { g.waste = 6; }),
            "layer 3 group 0 reads 6.0x the blocks that its tokens chose\n");
}

TEST(GateWarnings, TheLastMeasureCountsAndTheWorstComesFirst) {
  GateTable table;
  for (int64_t layer = 0; layer < 6; ++layer) {
    table.gates.push_back(good_row(layer));
    table.gates.back().gate.kept_mass = 0.8 - 0.01 * static_cast<double>(layer);
  }
  const std::vector<RunWarning> warnings = warnings_of_gates(table);
  ASSERT_EQ(warnings.size(), 4u);
  EXPECT_TRUE(warnings[0].text.starts_with("layer 5 group 0 keeps only 75%"));
  EXPECT_TRUE(warnings[3].text.ends_with("; and so do 2 more groups")) << warnings[3].text;
  EXPECT_EQ(warnings[0].level, RunWarning::Level::kBad);
  for (int64_t layer = 0; layer < 6; ++layer) {
    table.gates.push_back(good_row(layer));
    table.gates.back().step = 600;
  }
  EXPECT_EQ(told(warnings_of_gates(table)), "");
}

TEST(GateWarnings, BudgetsThatGoToAndFro) {
  GateTable table;
  for (int64_t i = 0; i < 7; ++i) {
    table.changes.push_back({.step = 100 * i,
                             .layer = 4,
                             .what = "kept_blocks",
                             .old_value = i % 2 == 0 ? "4" : "5",
                             .new_value = i % 2 == 0 ? "5" : "4",
                             .reason = ""});
  }
  EXPECT_EQ(told(warnings_of_gates(table)),
            "layer 4: kept_blocks goes to and fro, 5 turns in 7 changes\n");
}

TEST(ExpertWarnings, NameTheExpertAndTheLayer) {
  GateTable table;
  table.experts = {{.step = 1, .moe_layer = 1, .tokens = {100, 100, 100, 100, 100, 100, 100, 100}},
                   {.step = 2, .moe_layer = 0, .tokens = {90, 110, 100, 100, 100, 100, 100, 100}},
                   {.step = 2, .moe_layer = 1, .tokens = {0, 10, 10, 10, 10, 900, 10, 10}},
                   {.step = 3, .moe_layer = 1, .tokens = {0, 10, 10, 10, 10, 900, 10, 10}},
                   {.step = 4, .moe_layer = 1, .tokens = {0, 10, 10, 10, 10, 900, 10, 10}},
                   {.step = 5, .moe_layer = 1, .tokens = {0, 10, 10, 10, 10, 900, 10, 10}},
                   {.step = 6, .moe_layer = 1, .tokens = {0, 10, 10, 10, 10, 900, 10, 10}}};
  EXPECT_EQ(told(warnings_of_experts(table, 2)),
            "expert 5 of layer 3 gets 7.5x the mean\n"
            "expert 0 of layer 3 gets almost no tokens\n");
}

}  // namespace
}  // namespace tessera
