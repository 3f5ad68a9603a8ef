#include "runtime/train/run_saver.h"

#include <atomic>
#include <thread>

#include "checkpoint/candidates.h"
#include "kernels/core/random.h"
#include "tests/runtime/training_fixture.h"

// Saves of whole runs. How a save itself goes: tests/checkpoint/saver_test.cc.

namespace tessera {
namespace {

namespace fs = std::filesystem;

class RunSaverTest : public support::TrainingFixture {
 protected:
  /// What a run says on standard error.
  static std::string log_of(const std::function<void()>& body) {
    testing::internal::CaptureStderr();
    body();
    return testing::internal::GetCapturedStderr();
  }
  static void expect_said(const std::string& log, const std::string& text) {
    EXPECT_NE(log.find(text), std::string::npos) << log;
  }
  TrainConfig in_background(const std::string& name) const {
    return config(name, {"checkpoint.background=true"});
  }
};

TEST_F(RunSaverTest, SavingInTheBackgroundChangesNothing) {
  ASSERT_EQ(run(config("calm")), TrainingEnd::kFinished);
  ASSERT_EQ(run(in_background("busy")), TrainingEnd::kFinished);
  EXPECT_EQ(metrics("busy"), metrics("calm"));
  for (const char* step : {"00000005", "00000012"}) {
    expect_same_state(saved("busy", step), saved("calm", step));
  }
  run_on(MeshShape{.data = 2, .tensor = 2}, in_background("mesh"));
  run_on(MeshShape{.data = 2, .tensor = 2}, config("calm mesh"));
  for (const char* step : {"00000005", "00000012"}) {
    expect_same_state(saved("mesh", step), saved("calm mesh", step));
  }
}

// A run that is cut off anywhere goes on with the same bits, for a hundred steps and all stages.
TEST_F(RunSaverTest, ResumesBitForBitFromAnyStepForAHundredSteps) {
  // keep_every: no save is left out, however slow the disk.
  const auto long_run = [&](const std::string& name) {
    return config(name,
                  {"checkpoint.background=true", "checkpoint.every=7", "checkpoint.keep_every=7",
                   "steps=150", "checkpoint.keep_last=99", "sparsity.dense_steps=30",
                   "sparsity.gate_warmup_steps=10", "sparsity.transition_steps=40"});
  };
  ASSERT_EQ(run(long_run("whole")), TrainingEnd::kFinished);
  const std::vector<std::string> whole = metrics("whole");
  std::vector<Candidate> early;
  for (const Candidate& one : list_checkpoints(directory_ / "whole/checkpoints")) {
    if (one.id.step <= 50) early.push_back(one);
  }
  ASSERT_EQ(early.size(), 7u);
  for (uint64_t point = 0; point < 3; ++point) {
    const size_t drawn = philox(5, 0, point)[0] % early.size();
    const Candidate chosen = early[drawn];
    early.erase(early.begin() + static_cast<ptrdiff_t>(drawn));
    SCOPED_TRACE(chosen.id.step);
    const std::string name = concat("resumed", point);
    const ResumeFrom there{.kind = ResumeFrom::Kind::kDirectory, .directory = chosen.path};
    ASSERT_EQ(run(long_run(name), there), TrainingEnd::kFinished);
    EXPECT_EQ(metrics(name), std::vector<std::string>(whole.begin() + chosen.id.step, whole.end()));
    expect_same_state(saved(name, "00000150"), saved("whole", "00000150"));
  }
}

// The thread that writes step 5 does not come to an end before step 11 is over: steps 7 to 11 go
// on, the save of step 10 is skipped, and the end of the run waits.
TEST_F(RunSaverTest, SlowStorageDelaysNoStepAndIsSaid) {
  std::atomic<bool> holding = false;
  const auto on_stage = [&](const std::string& stage) {
    if (stage != "shard written" || holding.exchange(true)) return;
    while (metrics("slow").size() < 11) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  };
  const std::string log =
      log_of([&] { EXPECT_EQ(run(in_background("slow"), {}, on_stage), TrainingEnd::kFinished); });
  expect_said(log, "step 10 is not saved: step 5 is still being written");
  EXPECT_TRUE(fs::exists(saved("slow", "00000005") / "COMMITTED"));
  EXPECT_FALSE(fs::exists(saved("slow", "00000010")));
  EXPECT_TRUE(fs::exists(saved("slow", "00000012") / "COMMITTED"));
}

TEST_F(RunSaverTest, TroubleOfTheStorageStopsNoStep) {
  const auto on_stage = [&](const std::string& stage) {
    if (stage == "shard written" && metrics("full").size() < 12) {
      throw Error(ExitCode::kTryAgain, "no space left");
    }
  };
  const std::string log =
      log_of([&] { EXPECT_EQ(run(config("full"), {}, on_stage), TrainingEnd::kFinished); });
  expect_said(log, "step 5 is not saved, training goes on: no space left");
  expect_said(log, "step 10 is not saved, training goes on: no space left");
  EXPECT_FALSE(fs::exists(saved("full", "00000005")));
  EXPECT_TRUE(fs::exists(saved("full", "00000012") / "COMMITTED"));
}

TEST_F(RunSaverTest, ALastStateThatCannotBeSavedIsNoSuccess) {
  const auto on_stage = [&](const std::string& stage) {
    if (stage == "manifest renamed" && metrics("lost").size() > 10) {
      throw Error(ExitCode::kTryAgain, "no space left");
    }
  };
  try {
    run(config("lost"), {}, on_stage);
    ADD_FAILURE() << "the run calls itself finished";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kTryAgain);
    expect_said(error.what(), "the state after step 12 could not be saved: no space left");
  }
  ASSERT_EQ(run(config("lost")), TrainingEnd::kFinished);
  ASSERT_EQ(run(config("calm")), TrainingEnd::kFinished);
  expect_same_state(saved("lost", "00000012"), saved("calm", "00000012"));
}

TEST_F(RunSaverTest, AResumedRunProvesThatItIsBitExact) {
  ASSERT_EQ(run(in_background("whole")), TrainingEnd::kFinished);
  const ResumeFrom step5 = from("whole", "00000005");
  ASSERT_TRUE(CheckpointReader(step5.directory).facts().next_step_digest);
  EXPECT_FALSE(CheckpointReader(saved("whole", "00000012")).facts().next_step_digest);

  expect_said(log_of([&] { run(config("same"), step5); }), "step 6 is bit-exact");
  expect_said(log_of([&] { run(config("rate", {"optimizer.learning_rate=0.02"}), step5); }),
              "as expected: the configuration is another one");
  expect_said(log_of([&] { run_on(2, config("mesh"), step5); }),
              "as expected: the mesh is another one");

  // The same configuration and mesh, and yet another outcome.
  const TrainConfig lied = config("lied");
  copy_on({}, lied, step5.directory, lied.run_dir(), 42);
  expect_said(log_of([&] { run(lied); }), "step 6 is NOT bit-exact");
}

}  // namespace
}  // namespace tessera
