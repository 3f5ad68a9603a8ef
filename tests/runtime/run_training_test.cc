#include "runtime/train/run_training.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <sstream>
#include <thread>

#include "parallel/self_communicator.h"
#include "tests/runtime/training_fixture.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

using RunTrainingTest = support::TrainingFixture;

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

TEST_F(RunTrainingTest, AResumedRunSaysWhatIsSetDifferently) {
  ASSERT_EQ(run(config("run", {"steps=5", "sparsity.transition_steps=1"})), TrainingEnd::kFinished);
  const auto changes = [&](const std::vector<std::string>& more) {
    testing::internal::CaptureStderr();
    std::vector<std::string> lines;
    const TrainingEnd end = run(config("run", more));
    std::istringstream said(testing::internal::GetCapturedStderr());
    EXPECT_EQ(end, TrainingEnd::kFinished);
    const std::string words = "changed since the checkpoint: ";
    for (std::string line; std::getline(said, line);) {
      const size_t at = line.find(words);
      if (at != std::string::npos) lines.push_back(line.substr(at + words.size()));
    }
    return lines;
  };
  const std::string rest[] = {"sparsity.transition_steps=1", "model.rope_base=500",
                              "optimizer.learning_rate=0.02"};
  const std::vector<std::string> first{"model.rope_base: 10000 -> 500",
                                       "optimizer.learning_rate: 0.01 -> 0.02", "steps: 5 -> 7"};
  EXPECT_EQ(changes({"steps=7", rest[0], rest[1], rest[2]}), first);
  // From there on it is compared with what the checkpoint of step 7 was saved with.
  EXPECT_EQ(changes({"steps=9", rest[0], rest[1], rest[2]}),
            std::vector<std::string>{"steps: 7 -> 9"});
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

TEST_F(RunTrainingTest, NoneIsRefusedWhereCheckpointsAre) {
  ASSERT_EQ(run(config("used")), TrainingEnd::kFinished);
  const std::string message =
      thrown_by([&] { run(config("used"), {.kind = ResumeFrom::Kind::kNone}); });
  EXPECT_TRUE(message.starts_with("2: --resume none was asked for, but ")) << message;
  EXPECT_EQ(run(config("new"), {.kind = ResumeFrom::Kind::kNone}), TrainingEnd::kFinished);
}

TEST_F(RunTrainingTest, SaysWhenThereIsNoGpu) {
  if (find_gpus().count > 0) GTEST_SKIP() << "there is one";
  const TrainConfig on_gpu = config("gpu", {"runtime.device=GPU"});
  try {
    run(on_gpu);
    ADD_FAILURE() << "it ran";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_NE(std::string(error.what()).find("gpu was asked for, but there is none to use"),
              std::string::npos)
        << error.what();
  }
  EXPECT_FALSE(std::filesystem::exists(directory_ / "gpu")) << "nothing was written";
}

TEST_F(RunTrainingTest, DryRunNeedsNoData) {
  TrainConfig planned = config("unused");
  planned.mutable_data()->set_path("/nowhere");
  EXPECT_NE(dry_run(planned).find("= 1 ranks\nparameters: "), std::string::npos);
  EXPECT_FALSE(fs::exists(directory_ / "unused"));
}

}  // namespace
}  // namespace tessera
