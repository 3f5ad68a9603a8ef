#include "runtime/train/run_training.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <nlohmann/json.hpp>
#include <thread>

#include "checkpoint/compare.h"
#include "parallel/self_communicator.h"
#include "parallel/thread_communicator.h"
#include "tests/model/tiny_model.h"
#include "tests/runtime/dataset_fixture.h"
#include "tests/runtime/patterned_documents.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

class RunTrainingTest : public testing::Test {
 protected:
  RunTrainingTest() {
    fs::create_directories(directory_ / "data");
    write_test_dataset(directory_ / "data", patterned_documents());
  }

  /// 12 steps over all stages: dense 1-2, gate warm-up 3-4, transition 5-8, tuning 9-12.
  TrainConfig config(const std::string& run, std::vector<std::string> more = {}) const {
    std::vector<std::string> overrides{"model.vocabulary=257", "steps=12",
                                       "sparsity.transition_steps=4", "checkpoint.every=5",
                                       "checkpoint.keep_last=9"};
    overrides.insert(overrides.end(), more.begin(), more.end());
    TrainConfig config = support::tiny_config(overrides);
    config.mutable_data()->set_path(directory_ / "data");
    config.set_run_dir(directory_ / run);
    return config;
  }
  TrainingEnd run(const TrainConfig& config, const ResumeFrom& from = {}) const {
    const StopSignal stop;
    SelfCommunicator world;
    return run_training(config, from, world, stop);
  }
  fs::path saved(const std::string& run, const std::string& step) const {
    return directory_ / run / "checkpoints" / ("step-" + step);
  }
  void expect_same_state(const fs::path& left, const fs::path& right) const {
    const CheckpointReader a(left);
    const CheckpointReader b(right);
    EXPECT_GT(a.tensors().size(), 50u);
    for (const TensorDifference& difference : compare_checkpoints(a, b)) {
      ADD_FAILURE() << name_of(difference.kind) << " " << difference.name << " "
                    << difference.reason << " " << difference.elements;
    }
    for (const char* blob : {"progress", "spike_guard"}) {
      EXPECT_EQ(a.read_blob(blob), b.read_blob(blob)) << blob;
    }
  }
  /// What each step computed; of times, memory and rates nothing.
  std::vector<std::string> metrics(const std::string& run) const {
    std::ifstream in(directory_ / run / "metrics.jsonl");
    std::vector<std::string> steps;
    for (std::string line; std::getline(in, line);) {
      auto json = nlohmann::json::parse(line);
      for (const char* name : {"ms", "tokens_per_second", "tflops_per_device", "memory_gib",
                               "memory_share", "data_wait", "seconds_left"}) {
        json.erase(name);
      }
      steps.push_back(json.dump());
    }
    return steps;
  }

  TemporaryDirectory directory_;
};

TEST_F(RunTrainingTest, ResumedAndRepeatedRunsHaveTheSameBits) {
  for (const std::string precision : {"F32", "BF16"}) {
    SCOPED_TRACE(precision);
    const auto named = [&](const char* run) { return run + precision; };
    const auto config_of = [&](const std::string& run) {
      return config(run, {"runtime.precision=" + precision});
    };
    ASSERT_EQ(run(config_of(named("whole"))), TrainingEnd::kFinished);
    ASSERT_EQ(run(config_of(named("again"))), TrainingEnd::kFinished);
    const std::vector<std::string> whole = metrics(named("whole"));
    ASSERT_EQ(whole.size(), 12u);
    EXPECT_EQ(metrics(named("again")), whole);
    expect_same_state(saved(named("whole"), "00000012"), saved(named("again"), "00000012"));

    for (const char* step : {"00000005", "00000010"}) {
      const std::string resumed = named("from") + step;
      const ResumeFrom from{.kind = ResumeFrom::Kind::kDirectory,
                            .directory = saved(named("whole"), step)};
      ASSERT_EQ(run(config_of(resumed), from), TrainingEnd::kFinished);
      expect_same_state(saved(named("whole"), "00000012"), saved(resumed, "00000012"));
      const std::vector<std::string> rest(whole.begin() + std::stoi(step), whole.end());
      EXPECT_EQ(metrics(resumed), rest);
    }
  }
}

TEST_F(RunTrainingTest, StopsAfterTheStepAndGoesOnAsIfNothingHappened) {
  ASSERT_EQ(run(config("whole")), TrainingEnd::kFinished);
  {
    const StopSignal stop;
    kill(getpid(), SIGUSR1);
    while (!stop.requested()) std::this_thread::yield();
    SelfCommunicator world;
    EXPECT_EQ(run_training(config("stopped"), {}, world, stop), TrainingEnd::kStopped);
  }
  EXPECT_EQ(metrics("stopped").size(), 1u);
  EXPECT_TRUE(fs::exists(saved("stopped", "00000001")));
  ASSERT_EQ(run(config("stopped")), TrainingEnd::kFinished);
  EXPECT_EQ(metrics("stopped"), metrics("whole"));
  expect_same_state(saved("whole", "00000012"), saved("stopped", "00000012"));
  // A finished run does nothing.
  ASSERT_EQ(run(config("stopped")), TrainingEnd::kFinished);
  EXPECT_EQ(metrics("stopped").size(), 12u);
}

TEST_F(RunTrainingTest, Overfits) {
  const auto loss = [](const std::string& line) {
    return nlohmann::json::parse(line)["loss"].get<double>();
  };
  ASSERT_EQ(
      run(config("long", {"steps=60", "sparsity.dense_steps=30", "sparsity.gate_warmup_steps=10",
                          "sparsity.transition_steps=20", "checkpoint.every=0"})),
      TrainingEnd::kFinished);
  const std::vector<std::string> steps = metrics("long");
  ASSERT_EQ(steps.size(), 60u);
  EXPECT_LT(loss(steps.back()), 0.5 * loss(steps.front()));
}

TEST_F(RunTrainingTest, TwoRanksTrainLikeOne) {
  const std::vector<std::string> one_at_a_time{"batch.micro_sequences=1"};
  ASSERT_EQ(run(config("one", one_at_a_time)), TrainingEnd::kFinished);
  TrainConfig two = config("two", one_at_a_time);
  two.mutable_mesh()->set_data(2);
  const StopSignal stop;
  run_ranks(2, [&](Communicator& world) {
    EXPECT_EQ(run_training(two, {}, world, stop), TrainingEnd::kFinished);
  });
  const auto a = metrics("one");
  const auto b = metrics("two");
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    const double expected = nlohmann::json::parse(a[i])["loss"].get<double>();
    EXPECT_NEAR(nlohmann::json::parse(b[i])["loss"].get<double>(), expected, 1e-3 * expected) << i;
  }
}

TEST_F(RunTrainingTest, NoneIsRefusedWhereCheckpointsAre) {
  ASSERT_EQ(run(config("used")), TrainingEnd::kFinished);
  const std::string message =
      thrown_by([&] { run(config("used"), {.kind = ResumeFrom::Kind::kNone}); });
  EXPECT_TRUE(message.starts_with("2: --resume none was asked for, but ")) << message;
  EXPECT_EQ(run(config("new"), {.kind = ResumeFrom::Kind::kNone}), TrainingEnd::kFinished);
}

TEST_F(RunTrainingTest, DryRunNeedsNoData) {
  TrainConfig planned = config("unused");
  planned.mutable_data()->set_path("/nowhere");
  EXPECT_NE(dry_run(planned).find("= 1 ranks\nparameters: "), std::string::npos);
  EXPECT_FALSE(fs::exists(directory_ / "unused"));
}

}  // namespace
}  // namespace tessera
