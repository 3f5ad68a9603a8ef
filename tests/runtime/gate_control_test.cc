#include "runtime/control/gate_control.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/train/schedule.h"
#include "tests/model/tiny_model.h"
#include "tests/runtime/temporary_directory.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

/// Two layers that keep 8 of at most 64 blocks; tuning from step 3 on.
TrainConfig config_of(std::vector<std::string> more = {}) {
  std::vector<std::string> all{"model.moe=",
                               "model.attention.kept_blocks=8",
                               "batch.sequence_length=1024",
                               "sparsity.dense_steps=1",
                               "sparsity.gate_warmup_steps=0",
                               "sparsity.transition_steps=1",
                               "steps=10000",
                               "monitor.gate_every=1",
                               "gate_control.method=KEPT_MASS",
                               "gate_control.every=10"};
  all.insert(all.end(), more.begin(), more.end());
  return support::tiny_config(all);
}

/// Kept mass of a layer whose attention is spread over blocks like 2^-(i / half), sorted, with
/// `noise` of the size of a measure's.
double kept_mass(int64_t kept, double half, int64_t step, int64_t layer, double noise) {
  const auto words = philox(5, static_cast<uint64_t>(step), static_cast<uint64_t>(layer));
  return 1 - std::exp2(-static_cast<double>(kept) / half) + noise * normal(words[0], words[1]);
}

StepReport report_of(const StepPlan& plan, const std::vector<double>& halves, double noise = 0) {
  StepReport report;
  report.plan = plan;
  for (size_t layer = 0; layer < halves.size(); ++layer) {
    GateMeasure gate;
    gate.layer = static_cast<int64_t>(layer);
    gate.kept_blocks = plan.kept_of_layers.empty() ? plan.kept_blocks : plan.kept_of_layers[layer];
    gate.kept_mass = kept_mass(gate.kept_blocks, halves[layer], plan.step, gate.layer, noise);
    report.gates.push_back(gate);
  }
  return report;
}

/// Runs steps [first, end) of a controller with layers of these kinds; returns the last plan.
StepPlan drive(const TrainConfig& config, GateControl& control, const std::vector<double>& halves,
               int64_t first, int64_t end, double noise = 0) {
  StepPlan plan;
  for (int64_t step = first; step < end; ++step) {
    plan = plan_step(config, step);
    control.plan(plan);
    control.observe(report_of(plan, halves, noise));
  }
  return plan;
}

TEST(GateControl, ALayerWithTooLittleIsRecoveredByTheOthers) {
  const TrainConfig config = config_of({"gate_control.budgets=[0.25, 1.75]"});
  GateControl control(config, {});
  StepPlan plan = plan_step(config, 3);
  control.plan(plan);
  EXPECT_EQ(plan.kept_of_layers, (std::vector<int64_t>{2, 14}));
  // Both need the same: they end with the same.
  plan = drive(config, control, {4, 4}, 3, 1000);
  const std::vector<int64_t> kept = plan.kept_of_layers.empty()
                                        ? std::vector<int64_t>{plan.kept_blocks, plan.kept_blocks}
                                        : plan.kept_of_layers;
  EXPECT_NEAR(static_cast<double>(kept[0]), 8, 1);
  EXPECT_NEAR(static_cast<double>(kept[1]), 8, 1);
  EXPECT_EQ(kept[0] + kept[1], 16);
}

TEST(GateControl, BudgetsAreOfTheSequencesOfTheStep) {
  const TrainConfig config = config_of({"gate_control.budgets=[0.5, 4]",
                                        "curriculum.sequence_length=[{value: 256}, "
                                        "{step: 9 value: 1024}]"});
  GateControl control(config, {});
  const auto kept_at = [&](int64_t step) {
    StepPlan plan = plan_step(config, step);
    control.plan(plan);
    return plan.kept_of_layers;
  };
  EXPECT_EQ(kept_at(8), (std::vector<int64_t>{4, 16}));  // of 16 blocks
  EXPECT_EQ(kept_at(9), (std::vector<int64_t>{4, 32}));
}

TEST(GateControl, NothingMovesInASettledRun) {
  const TemporaryDirectory directory;
  const TrainConfig config = config_of();
  GateControl control(config, GateChangeLog(directory.path()));
  drive(config, control, {5, 5}, 1, 3000, /*noise=*/0.005);
  std::ifstream in(directory / "gate_changes.jsonl");
  EXPECT_EQ(in.peek(), std::ifstream::traits_type::eof());
}

TEST(GateControl, WithoutAFixedTotalEveryLayerComesToTheTarget) {
  const TrainConfig config =
      config_of({"gate_control.fixed_total=false", "gate_control.target=0.9"});
  GateControl control(config, {});
  const StepPlan plan = drive(config, control, {1.5, 6}, 3, 2000);
  ASSERT_EQ(plan.kept_of_layers.size(), 2u);
  // 1 - 2^(-k / half) = 0.9 at 3.3 half: 5.0 and 19.9, with a hysteresis of one.
  EXPECT_NEAR(static_cast<double>(plan.kept_of_layers[0]), 5, 1.1);
  EXPECT_NEAR(static_cast<double>(plan.kept_of_layers[1]), 19.9, 1.1);
}

TEST(GateControl, APriceKeepsTheMean) {
  const TrainConfig config = config_of(
      {"gate_control.method=LAGRANGIAN", "gate_control.cost=0.75", "gate_control.rate=0.5"});
  GateControl control(config, {});
  const StepPlan plan = drive(config, control, {3, 8}, 3, 20000);
  ASSERT_EQ(plan.kept_of_layers.size(), 2u);
  EXPECT_NEAR(static_cast<double>(plan.kept_of_layers[0] + plan.kept_of_layers[1]), 12, 1.1);
  EXPECT_LT(plan.kept_of_layers[0], plan.kept_of_layers[1]);
}

TEST(GateControl, ChangesAreToldWithTheirReason) {
  const TemporaryDirectory directory;
  const TrainConfig config = config_of({"gate_control.budgets=[0.25, 1.75]"});
  GateControl control(config, GateChangeLog(directory.path()));
  drive(config, control, {4, 4}, 3, 21);
  std::ifstream in(directory / "gate_changes.jsonl");
  std::string line;
  ASSERT_TRUE(std::getline(in, line));
  const auto json = nlohmann::json::parse(line);
  EXPECT_EQ(json["step"], 10);
  EXPECT_EQ(json["layer"], 0);
  EXPECT_EQ(json["old"], 2);
  EXPECT_GT(json["new"], 2);
  const auto reason = json["reason"].get<std::string>();
  EXPECT_EQ(reason.substr(0, 32), "kept mass 0.2929, target 0.9800,") << reason;
}

TEST(GateControl, OnlyTheTuningStageIsControlled) {
  const TrainConfig config = config_of({"sparsity.dense_steps=40", "sparsity.transition_steps=40",
                                        "gate_control.budgets=[0.5, 1.5]"});
  GateControl control(config, {});
  drive(config, control, {4, 4}, 1, 80);
  EXPECT_EQ(control.budgets().in_force(), (Budgets{0.5, 1.5}));
  StepPlan dense = plan_step(config, 30);
  control.plan(dense);
  EXPECT_TRUE(dense.kept_of_layers.empty());
  StepPlan transition = plan_step(config, 78);  // near its end
  control.plan(transition);
  ASSERT_EQ(transition.kept_of_layers.size(), 2u);
  EXPECT_LT(transition.kept_of_layers[0], transition.kept_blocks);
  EXPECT_GT(transition.kept_of_layers[1], transition.kept_blocks);
}

TEST(GateControl, StateGoesOnBitByBit) {
  for (const char* method : {"KEPT_MASS", "LAGRANGIAN"}) {
    const TrainConfig config =
        config_of({concat("gate_control.method=", method), "gate_control.budgets=[0.25, 1.75]"});
    GateControl whole(config, {});
    drive(config, whole, {4, 7}, 3, 300, 0.005);
    GateControl before(config, {});
    drive(config, before, {4, 7}, 3, 105, 0.005);  // between two changes
    GateControl after(config, {});
    after.restore(before.state());
    EXPECT_EQ(after.state(), before.state());
    drive(config, after, {4, 7}, 105, 300, 0.005);
    EXPECT_EQ(after.state(), whole.state());
    EXPECT_NE(after.state(), before.state());
  }
}

TEST(GateControl, SaysWhatIsWrongWithAState) {
  const TrainConfig config = config_of();
  GateControl control(config, {});
  support::expect_error([&] { control.restore("{"); },
                        "gate control: its state in the checkpoint is damaged");
  support::expect_error([&] { control.restore("{\"wanted\": [1]}"); },
                        "gate control: its state in the checkpoint is damaged");
  support::expect_error(
      [&] {
        control.restore(R"({"wanted":[1],"in_force":[1],"price":0,"round":0,"kept_masses":[0],)"
                        R"("measures":0})");
      },
      "gate control: its state in the checkpoint is of 1 layers, the model has 2");
}

/// Losses of a world where layer 0 needs more blocks than layer 1, with noise that batches share.
GateControl::Probe world_of(int64_t& calls, double gain) {
  return [&calls, gain](const StepPlan& plan) {
    ++calls;
    std::vector<double> losses;
    const auto kept = [&](size_t layer) {
      return static_cast<double>(plan.kept_of_layers.empty() ? plan.kept_blocks
                                                             : plan.kept_of_layers[layer]);
    };
    for (uint64_t batch = 0; batch < 8; ++batch) {
      const auto words = philox(9, static_cast<uint64_t>(plan.step), batch);
      const double lost = plan.gated ? gain * (3 / kept(0) + 1 / kept(1)) : 0;
      const double own = philox(10, static_cast<uint64_t>(calls), batch)[0] * 0x1p-32 * 1e-4;
      losses.push_back(3 + 0.1 * normal(words[0], words[1]) + lost + own);
    }
    return losses;
  };
}

TEST(GateControl, ASearchFindsWhichLayerNeedsMore) {
  const TrainConfig config = config_of({"gate_control.method=SEARCH"});
  int64_t calls = 0;
  GateControl control(config, {}, world_of(calls, 0.1));
  const StepPlan plan = drive(config, control, {4, 4}, 3, 400);
  EXPECT_EQ(calls, 4 * 39);
  ASSERT_EQ(plan.kept_of_layers.size(), 2u);
  // 3 / k0 + 1 / k1 with k0 + k1 = 16 is least at k0 = sqrt(3) k1: 10.1 and 5.9.
  EXPECT_NEAR(static_cast<double>(plan.kept_of_layers[0]), 10.1, 1.2);
  EXPECT_NEAR(static_cast<double>(plan.kept_of_layers[0] + plan.kept_of_layers[1]), 16, 1);
}

TEST(GateControl, ASearchTakesNothingThatIsNotCertain) {
  const TrainConfig config = config_of({"gate_control.method=SEARCH"});
  int64_t calls = 0;
  GateControl control(config, {}, world_of(calls, 1e-6));
  drive(config, control, {4, 4}, 3, 100);
  EXPECT_LE(std::abs(control.budgets().in_force()[0] - 1), 0.25);
  support::expect_error([&] { GateControl(config, {}); }, "gate control: a search needs a probe");
}

TEST(GateControl, SavedBudgetsHoldForWhatComesAfterTheRun) {
  const TrainConfig config = config_of({"gate_control.budgets=[0.25, 1.75]"});
  GateControl control(config, {});
  drive(config, control, {4, 7}, 3, 300);
  StepPlan expected = plan_step(config, 300);
  control.plan(expected);
  StepPlan plan = plan_step(config, 300);
  apply_saved_budgets(config, control.state(), plan);
  EXPECT_EQ(plan.kept_of_layers, expected.kept_of_layers);
  ASSERT_EQ(plan.kept_of_layers.size(), 2u);
  StepPlan start = plan_step(config, 300);
  apply_saved_budgets(config, "", start);
  EXPECT_EQ(start.kept_of_layers, (std::vector<int64_t>{2, 14}));
}

}  // namespace
}  // namespace tessera
