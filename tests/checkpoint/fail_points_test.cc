#include "checkpoint/fail_points.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <set>
#include <thread>

#include "tests/checkpoint/sample_run.h"

namespace tessera {
namespace {

std::string refusal(const std::string& text) {
  try {
    const FailPoints points(text);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    return error.what();
  }
  return "";
}

bool fails(const FailPoints& points, const char* stage, int rank) {
  try {
    points.reach(stage, rank);
    return false;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kTryAgain);
    return true;
  }
}

// How a child process ends, or stops, that reaches "committed" as rank 3.
int status_after(const std::string& text) {
  const FailPoints points(text);
  const pid_t child = fork();
  if (child == 0) {
    points.reach("committed", 3);
    _exit(7);
  }
  int status = 0;
  waitpid(child, &status, WUNTRACED);
  if (WIFSTOPPED(status)) {
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
  }
  return status;
}

TEST(FailPoints, DoNothingUnlessArmed) {
  EXPECT_FALSE(FailPoints().armed());
  EXPECT_FALSE(FailPoints("").armed());
  for (const char* stage : kSaveStages) FailPoints("").observer(0)(stage);
}

TEST(FailPoints, ActAtTheVisitOfTheRankTheyName) {
  const FailPoints points("ckpt.shard_synced:error@rank3#2");
  EXPECT_TRUE(points.armed());
  for (const bool expected : {false, true, false}) {
    EXPECT_FALSE(fails(points, "shard synced", 2));
    EXPECT_FALSE(fails(points, "shard written", 3));
    EXPECT_EQ(fails(points, "shard synced", 3), expected);
  }
}

TEST(FailPoints, EveryRankCountsForItself) {
  const FailPoints points("ckpt.committed:error#2");
  EXPECT_FALSE(fails(points, "committed", 0));
  EXPECT_FALSE(fails(points, "committed", 1));
  const FailPoints copy = points;  // shares the counts
  EXPECT_TRUE(fails(copy, "committed", 0));
  EXPECT_TRUE(fails(points, "committed", 1));
  EXPECT_FALSE(fails(points, "committed", 1));
}

TEST(FailPoints, APlusIsFromThenOn) {
  const FailPoints points("ckpt.committed:error@any#2+");
  for (const bool expected : {false, true, true, true}) {
    EXPECT_EQ(fails(points, "committed", 5), expected);
  }
}

TEST(FailPoints, ThereMayBeSeveral) {
  const FailPoints points("ckpt.committed:delay=30,ckpt.committed:error,ckpt.part_synced:error");
  EXPECT_TRUE(fails(points, "part synced", 0));
  const auto start = std::chrono::steady_clock::now();
  EXPECT_TRUE(fails(points, "committed", 0));
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(30));
}

TEST(FailPoints, LeaveOutAnExchange) {
  const FailPoints points("comm.exchange:skip@rank1#2");
  EXPECT_TRUE(points.passes_exchange(0));
  EXPECT_TRUE(points.passes_exchange(0));
  EXPECT_TRUE(points.passes_exchange(1));
  EXPECT_FALSE(points.passes_exchange(1));
  EXPECT_TRUE(points.passes_exchange(1));
  EXPECT_TRUE(FailPoints().passes_exchange(1));
}

TEST(FailPoints, TheErrorNamesThePoint) {
  try {
    FailPoints("ckpt.parts_merged:error").observer(2)("parts merged");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(without_rank(error.what()), "fail point ckpt.parts_merged:error makes rank 2 fail");
  }
}

TEST(FailPoints, EndOrStopTheProcess) {
  const int killed = status_after("ckpt.committed:kill@rank3");
  EXPECT_TRUE(WIFSIGNALED(killed) && WTERMSIG(killed) == SIGKILL) << killed;
  const int stopped = status_after("ckpt.committed:stop");
  EXPECT_TRUE(WIFSTOPPED(stopped) && WSTOPSIG(stopped) == SIGSTOP) << stopped;
  const int left = status_after("ckpt.committed:exit=42");
  EXPECT_TRUE(WIFEXITED(left) && WEXITSTATUS(left) == 42) << left;
  const int spared = status_after("ckpt.committed:kill@rank4");
  EXPECT_TRUE(WIFEXITED(spared) && WEXITSTATUS(spared) == 7) << spared;
}

TEST(FailPoints, ThreadsMayReachThemTogether) {
  const FailPoints points("ckpt.tensor_written:error#100");
  std::atomic<int> failures = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 100; ++i) failures += fails(points, "tensor written", 1) ? 1 : 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 1);
}

TEST(FailPoints, SayWhichWordIsWrongAndWhatWouldBeRight) {
  const std::vector<std::pair<std::string, std::string>> cases{
      {"ckpt.shard:kill", "\"ckpt.shard\" is wrong, expected one of ckpt.snapshot_taken, "},
      {"shard_synced:kill", "\"shard_synced\" is wrong, expected one of "},
      {"ckpt.committed", "\"ckpt.committed\" is wrong, expected STAGE:ACTION"},
      {"ckpt.committed:skip", "\"skip\" is wrong, expected kill, stop, error, delay="},
      {"ckpt.committed:boom", "\"boom\" is wrong, expected kill, stop, error, delay="},
      {"ckpt.committed:delay=-1", "\"delay=-1\" is wrong"},
      {"ckpt.committed:delay=x", "\"delay=x\" is wrong"},
      {"ckpt.committed:exit=256", "\"exit=256\" is wrong"},
      {"ckpt.committed:kill@3", "\"3\" is wrong, expected any or rankR"},
      {"ckpt.committed:kill@rank", "\"rank\" is wrong"},
      {"ckpt.committed:kill#0", "\"0\" is wrong, expected a number from 1"},
      {"ckpt.committed:kill#2@rank1", "\"2@rank1\" is wrong"},
      {"ckpt.committed:kill#99999999999999999999", "is wrong, expected a number from 1"},
      {"ckpt.committed:kill,", "fail point \"\": \"\" is wrong, expected STAGE:ACTION"},
      {" ", "\" \" is wrong"},
  };
  for (const auto& [text, expected] : cases) {
    EXPECT_NE(refusal(text).find(expected), std::string::npos) << text << ": " << refusal(text);
  }
  for (const char* stage : kSaveStages) {
    std::string word = stage;
    std::replace(word.begin(), word.end(), ' ', '_');
    EXPECT_EQ(refusal("ckpt." + word + ":kill@rank0#1"), "");
    EXPECT_NE(refusal("x:kill").find("ckpt." + word), std::string::npos);
  }
}

TEST(FailPoints, KnowEveryStageThatASaveAnnounces) {
  const support::TemporaryDirectory run;
  std::set<std::string> announced;
  StoreOptions options = support::quick_options();
  options.retention.keep_last = 1;
  options.on_stage = [&](const char* stage) { announced.insert(stage); };
  CheckpointStore store(run.path(), options);
  for (const int64_t step : {1, 2}) {
    ASSERT_TRUE(store.save(support::SampleState(step).contents()).committed);
  }
  EXPECT_GE(announced.size(), 15u);
  const std::set<std::string> known(kSaveStages.begin(), kSaveStages.end());
  for (const std::string& stage : announced) EXPECT_TRUE(known.contains(stage)) << stage;
}

}  // namespace
}  // namespace tessera
