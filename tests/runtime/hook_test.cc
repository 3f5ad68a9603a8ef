// Hooks of shared libraries, in runs of one and of two ranks: the example of the documentation, and
// one that fails in every way.

#include <gtest/gtest.h>

#include <fstream>

#include "runtime/hooks/library_hook.h"
#include "runtime/train/plan_digest.h"
#include "tests/runtime/training_fixture.h"

namespace tessera {
namespace {

constexpr const char* kFaulty = BINARY_ROOT "/tests/runtime/faulty_hook.so";
constexpr const char* kPatience = BINARY_ROOT "/tests/runtime/patience_hook.so";

class HookTest : public support::TrainingFixture {
 protected:
  TrainConfig with_hook(const std::string& run, const std::string& library,
                        const std::string& options) const {
    TrainConfig config =
        this->config(run, {"steps=6", "checkpoint.every=3", "sparsity.transition_steps=1"});
    HookConfig& hook = *config.add_hooks();
    hook.set_name("mine");
    hook.set_library(library);
    hook.set_options(options);
    return config;
  }
  /// What each of `ranks` ranks throws, which must be the same.
  std::string stopped_on(int ranks, TrainConfig config, const ResumeFrom& from = {}) const {
    config.mutable_mesh()->set_data(ranks);
    const StopSignal stop;
    std::vector<std::string> thrown(static_cast<size_t>(ranks));
    run_ranks(ranks, [&](Communicator& world) {
      thrown[static_cast<size_t>(world.rank())] =
          thrown_by([&] { run_training(config, from, world, stop); });
    });
    for (const std::string& message : thrown) EXPECT_EQ(message, thrown[0]);
    return thrown[0];
  }
  static std::string thrown_by(const std::function<void()>& work) {
    try {
      work();
    } catch (const Error& error) {
      return concat(static_cast<int>(error.code()), ": ", without_rank(error.what()));
    }
    return "nothing was thrown";
  }
};

TEST_F(HookTest, FailuresStopAllRanksWithTheHooksName) {
  for (const std::string place : {"plan", "observe", "state"}) {
    // What fails after step 3 is told in the first message of step 4.
    const std::string doing = place == "plan" ? "planning" : "after";
    const std::string why = "hook mine failed " + doing + " step 3: as asked";
    const std::string options = "throw " + place + " 3";
    EXPECT_EQ(stopped_on(1, with_hook(place + "1", kFaulty, options)), "1: " + why);
    EXPECT_EQ(stopped_on(2, with_hook(place + "2", kFaulty, options)), "1: rank 1: " + why);
    EXPECT_EQ(metrics(place + "2").size(), place == "plan" ? 2u : 3u);
  }
  // After the last step nobody waits for a next one.
  EXPECT_EQ(stopped_on(2, with_hook("last", kFaulty, "throw observe 6")),
            "1: rank 1: hook mine failed after step 6: as asked");
}

TEST_F(HookTest, PlansThatDifferOrCannotBeStopAllRanks) {
  EXPECT_EQ(stopped_on(2, with_hook("differ", kFaulty, "differ 3")),
            "1: rank 1: hook mine plans step 3 differently on different ranks; a plan may depend "
            "on the step, its reports and the options only");
  EXPECT_EQ(stopped_on(1, with_hook("range", kFaulty, "range 3")),
            "1: hook mine failed planning step 3: it sets the kept blocks to 1000, expected 1 to "
            "7");
  // Without the fault it is a run like any other.
  run_on(2, with_hook("fine", kFaulty, "differ 99"));
  EXPECT_EQ(metrics("fine").size(), 6u);
}

TEST_F(HookTest, LibrariesThatCannotBeUsedStopTheRunBeforeItBegins) {
  std::ofstream(directory_ / "text.so") << "no library\n";
  const std::string text = (directory_ / "text.so").string();
  EXPECT_TRUE(stopped_on(2, with_hook("a", text, ""))
                  .starts_with("2: rank 0: hook mine: " + text + " cannot be loaded: "));
  EXPECT_TRUE(stopped_on(1, with_hook("a", "no/such.so", ""))
                  .starts_with("2: hook mine: no/such.so cannot be loaded: "));
  EXPECT_EQ(stopped_on(1, with_hook("a", BINARY_ROOT "/tests/runtime/no_hook.so", "")),
            "2: hook mine: " BINARY_ROOT
            "/tests/runtime/no_hook.so exports no tessera_hook_table, "
            "expected a library built with runtime/hooks/tessera_hook.h");
  EXPECT_EQ(stopped_on(2, with_hook("a", kFaulty, "refuse")),
            "2: rank 0: hook mine does not start: it does not like its options");
  EXPECT_EQ(stopped_on(1, with_hook("a", kPatience, "patience=many")),
            "2: hook mine does not start: option patience=many, expected patience=STEPS or "
            "factor=SHARE");
  EXPECT_EQ(stopped_on(1, with_hook("a", kPatience, "speed=3")),
            "2: hook mine does not start: option speed=3, expected patience=STEPS or factor=SHARE");
  EXPECT_FALSE(std::filesystem::exists(directory_ / "a"));
}

TEST(HookTable, OnlyOfThisVersionAndWhole) {
  const auto told = [](const TesseraHookTable* table) {
    try {
      check_table(table, "hook a: b.so");
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kUsage);
      return std::string(error.what());
    }
    return std::string("fine");
  };
  class Nothing : public hooks::UserHook {
   public:
    explicit Nothing(const TesseraSetup& /*setup*/) {}
  };
  TesseraHookTable table = *hooks::table_of<Nothing>();
  EXPECT_EQ(told(&table), "fine");
  table.version = 2;
  EXPECT_TRUE(told(&table).starts_with(
      "hook a: b.so has version 2 of the hook interface, expected 1; build it"));
  EXPECT_TRUE(told(nullptr).starts_with("hook a: b.so has version 0"));
  table.version = kTesseraHookVersion;
  table.observe = nullptr;
  EXPECT_NE(told(&table).find("functions are missing"), std::string::npos);
}

TEST_F(HookTest, StateGoesIntoTheCheckpointAndComesBack) {
  ASSERT_EQ(run(with_hook("whole", kFaulty, "count")), TrainingEnd::kFinished);
  EXPECT_EQ(CheckpointReader(saved("whole", "00000003")).read_blob("hook/mine"), "3");
  ASSERT_EQ(run(with_hook("resumed", kFaulty, "count"), from("whole", "00000003")),
            TrainingEnd::kFinished);
  expect_same_state(saved("whole", "00000006"), saved("resumed", "00000006"));
  const std::vector<double> rates = metric("whole", "learning_rate");
  EXPECT_NEAR(rates[5] / rates[4], 1.05 / 1.04 * 0.5, 0.5);  // the schedule falls too
  EXPECT_EQ(stopped_on(1, with_hook("broken", kFaulty, "throw restore"), from("whole", "00000003")),
            "65: hook mine cannot go on from its state: as asked");
}

TEST_F(HookTest, TheExampleLowersTheRateWhenTheLossStands) {
  TrainConfig config = with_hook("patience", kPatience, "patience=1 factor=0.5");
  config.mutable_optimizer()->set_learning_rate(1e-12);  // nothing is learned
  config.mutable_schedule()->set_shape(ScheduleConfig::CONSTANT);
  config.mutable_schedule()->set_warmup_steps(0);
  ASSERT_EQ(run(config), TrainingEnd::kFinished);
  const std::vector<double> losses = metric("patience", "loss");
  const std::vector<double> rates = metric("patience", "learning_rate");
  double best = losses[0];
  double expected = 1e-12;
  EXPECT_EQ(rates[0], expected);
  for (size_t i = 1; i < losses.size(); ++i) {
    EXPECT_EQ(rates[i], expected) << i;
    if (losses[i] >= best) expected *= 0.5;
    best = std::min(best, losses[i]);
  }
  EXPECT_LT(expected, 1e-12);
}

TEST(PlanDigest, EqualPlansAgreeAndOthersDoNot) {
  StepPlan plan{.step = 3, .learning_rate = 0.1, .kept_blocks = 4, .window = 8, .weights = {0.5}};
  const auto agree = [](const std::vector<StepPlan>& plans, bool failed = false) {
    PlanRiders sums{};
    for (const StepPlan& p : plans) {
      const PlanRiders riders = plan_riders(p, failed);
      for (size_t i = 0; i < sums.size(); ++i) sums[i] += riders[i];
    }
    return agreement(sums, static_cast<int>(plans.size()));
  };
  for (const size_t ranks : {1, 2, 3, 384}) {
    EXPECT_EQ(agree(std::vector<StepPlan>(ranks, plan)), Agreement::kSame) << ranks;
  }
  EXPECT_EQ(agree({plan, plan}, true), Agreement::kFailed);
  const auto differs = [&](auto change) {
    StepPlan other = plan;
    change(other);
    for (const size_t ranks : {1, 7, 100}) {
      std::vector<StepPlan> plans(ranks, plan);
      plans.insert(plans.begin() + static_cast<std::ptrdiff_t>(ranks / 2), other);
      EXPECT_EQ(agree(plans), Agreement::kDiffers) << ranks;
    }
  };
  differs([](StepPlan& p) { p.learning_rate = std::nextafter(0.1, 1); });
  differs([](StepPlan& p) { p.kept_blocks = 5; });
  differs([](StepPlan& p) { p.window = 9; });
  differs([](StepPlan& p) { p.gate_strength = 0.5; });
  differs([](StepPlan& p) { p.kl = 1; });
  differs([](StepPlan& p) { p.entropy = 1; });
  differs([](StepPlan& p) { p.z_loss = 1; });
  differs([](StepPlan& p) { p.weights[0] = 0.25; });
  differs([](StepPlan& p) { p.pool = 0.5; });
  differs([](StepPlan& p) { p.kept_of_layers = {4, 4}; });
  differs([](StepPlan& p) { p.measure_gates = true; });
  differs([](StepPlan& p) { p.heat_maps = true; });
}

}  // namespace
}  // namespace tessera
