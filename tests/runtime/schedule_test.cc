#include "runtime/train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "tests/model/tiny_model.h"

namespace tessera {
namespace {

TrainConfig config_with(std::vector<std::string> more) {
  std::vector<std::string> overrides{"steps=40",
                                     "batch.sequence_length=256",
                                     "sparsity.dense_steps=10",
                                     "sparsity.gate_warmup_steps=4",
                                     "sparsity.transition_steps=20",
                                     "sparsity.dense_refresh=16"};
  overrides.insert(overrides.end(), more.begin(), more.end());
  return support::tiny_config(overrides);
}

TEST(Schedule, StagesBeginAndEndWhereTheyShould) {
  const TrainConfig config = config_with({});
  for (int64_t step = 1; step <= 40; ++step) {
    const StepPlan plan = plan_step(config, step);
    const Stage stage = step <= 6    ? Stage::kDense
                        : step <= 10 ? Stage::kGateWarmup
                        : step <= 30 ? Stage::kTransition
                                     : Stage::kTuning;
    EXPECT_EQ(name_of(plan.stage), name_of(stage)) << step;
    EXPECT_EQ(plan.gated, step > 6) << step;
    EXPECT_EQ(plan.step, step);
    if (step <= 10) {
      EXPECT_EQ(plan.kept_blocks, 16);
      EXPECT_EQ(plan.window, 256);
      EXPECT_EQ(plan.gate_strength, 0);
      EXPECT_EQ(plan.entropy, 0);
      EXPECT_EQ(plan.kl, 1);
    }
    if (step > 30) {
      EXPECT_EQ(plan.kept_blocks, 2);
      EXPECT_EQ(plan.window, 24);
      EXPECT_EQ(plan.gate_strength, 1 - 0x1p-10);
      EXPECT_EQ(plan.entropy, 0.01);
      EXPECT_EQ(plan.kl, 0.3);
    }
    EXPECT_EQ(plan.z_loss, 1e-4);
  }
}

TEST(Schedule, TheRampCanBeWeakerOrAbsent) {
  for (const double strength : {0.0, 0.5}) {
    const TrainConfig config = config_with({concat("sparsity.strength=", strength)});
    EXPECT_EQ(plan_step(config, 10).gate_strength, 0);
    EXPECT_EQ(plan_step(config, 20).gate_strength, 0.5 * strength);  // rho of the middle
    EXPECT_EQ(plan_step(config, 31).gate_strength, strength);
    EXPECT_EQ(plan_step(config, 31).kept_blocks, 2);
  }
}

TEST(Schedule, WithoutAChoiceOfBlocksNothingIsGatedAndTheWindowShrinks) {
  const TrainConfig config = config_with({"model.attention.selection=NONE"});
  for (int64_t step = 1; step <= 40; ++step) EXPECT_FALSE(plan_step(config, step).gated) << step;
  EXPECT_EQ(plan_step(config, 10).window, 256);
  EXPECT_EQ(plan_step(config, 31).window, 24);
}

// Local groups lose sight first; what they did moves to global groups that still see everything.
TEST(Schedule, TheWindowMayShrinkBeforeBlocksAreDropped) {
  const TrainConfig config = config_with({"sparsity.window_first=0.5", "sparsity.dense_refresh=0"});
  for (int64_t step = 11; step <= 30; ++step) {
    const StepPlan plan = plan_step(config, step);
    const double x = static_cast<double>(step - 10) / 20;
    const double w = std::min(1.0, 2 * x);
    const double k = std::max(0.0, 2 * x - 1);
    const double rho = 3 * k * k - 2 * k * k * k;
    EXPECT_EQ(plan.window, std::lround(256 * std::pow(24.0 / 256, 3 * w * w - 2 * w * w * w)));
    EXPECT_EQ(plan.kept_blocks, std::ceil(16 * std::pow(2.0 / 16, rho) - 1e-9)) << step;
    EXPECT_NEAR(plan.gate_strength, rho * 1023 / 1024, 1e-12) << step;
    EXPECT_NEAR(plan.kl, std::pow(0.3, rho), 1e-12) << step;
  }
  EXPECT_EQ(plan_step(config, 20).window, 24);
  EXPECT_EQ(plan_step(config, 20).kept_blocks, 16);
  EXPECT_EQ(plan_step(config, 30).kept_blocks, 2);
}

TEST(Schedule, TransitionIsGeometric) {
  const TrainConfig config = config_with({});
  for (int64_t step = 11; step <= 30; ++step) {
    const StepPlan plan = plan_step(config, step);
    if (step == 16) {  // dense refresh
      EXPECT_EQ(plan.kept_blocks, 16);
      EXPECT_EQ(plan.window, 256);
      EXPECT_EQ(plan.gate_strength, 0);
      continue;
    }
    const double x = static_cast<double>(step - 10) / 20;
    const double rho = 3 * x * x - 2 * x * x * x;
    EXPECT_EQ(plan.kept_blocks, std::ceil(16 * std::pow(2.0 / 16, rho) - 1e-9)) << step;
    EXPECT_EQ(plan.window, std::lround(256 * std::pow(24.0 / 256, rho))) << step;
    EXPECT_NEAR(plan.gate_strength, rho * 1023 / 1024, 1e-12) << step;
    EXPECT_NEAR(plan.kl, std::pow(0.3, rho), 1e-12) << step;
    EXPECT_NEAR(plan.entropy, 0.01 * rho, 1e-12) << step;
  }
  EXPECT_EQ(plan_step(config, 20).kept_blocks, 6);  // sqrt(16 * 2) = 5.66
  EXPECT_EQ(plan_step(config, 20).window, 78);      // sqrt(256 * 24) = 78.4
  EXPECT_EQ(plan_step(config_with({"sparsity.dense_refresh=0"}), 16).kept_blocks, 11);
}

TEST(Schedule, LearningRateShapes) {
  const auto rate = [](const std::string& shape, int64_t step) {
    return learning_rate(config_with({"schedule.shape=" + shape, "schedule.warmup_steps=4",
                                      "schedule.decay_steps=10", "schedule.final_fraction=0.2"}),
                         step);
  };
  EXPECT_NEAR(rate("COSINE", 22), 0.002 + 0.008 / 2, 1e-12);
  EXPECT_NEAR(rate("COSINE", 13), 0.002 + 0.008 * 0.5 * (1 + std::cos(std::numbers::pi / 4)),
              1e-12);
  EXPECT_NEAR(rate("COSINE", 40), 0.002, 1e-12);
  EXPECT_EQ(rate("CONSTANT", 40), 0.01);
}

TEST(Schedule, WarmUpIsLinearAndWsdEndsInAStraightLine) {
  const TrainConfig config =
      config_with({"schedule.shape=WSD", "schedule.warmup_steps=4", "schedule.decay_steps=10",
                   "schedule.final_fraction=0.2"});
  EXPECT_NEAR(learning_rate(config, 1), 0.0025, 1e-12);
  EXPECT_NEAR(learning_rate(config, 4), 0.01, 1e-12);
  EXPECT_EQ(learning_rate(config, 30), 0.01);
  EXPECT_NEAR(learning_rate(config, 35), 0.006, 1e-12);
  EXPECT_NEAR(learning_rate(config, 40), 0.002, 1e-12);
  EXPECT_NEAR(learning_rate(config, 100), 0.002, 1e-12);  // a run made longer never goes below
}

}  // namespace
}  // namespace tessera
