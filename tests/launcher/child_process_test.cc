#include "launcher/child_process.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <thread>

#include "kernels/core/error.h"
#include "tests/checkpoint/sample_run.h"

namespace tessera {
namespace {

using support::TemporaryDirectory;

std::vector<std::string> shell(const std::string& script) {
  return {"sh", "-c", script};
}

TEST(ChildProcess, SaysHowItEnded) {
  ChildRunner runner;
  EXPECT_EQ(runner.run({"true"}).exit_code, 0);
  EXPECT_EQ(runner.run(shell("exit 75")).exit_code, 75);
  const ChildEnd end = runner.run(shell("kill -KILL $$"));
  EXPECT_EQ(end.exit_code, 128 + SIGKILL);
  EXPECT_FALSE(end.stopped);
  EXPECT_TRUE(runner.wait(0.01));
}

TEST(ChildProcess, WhatIsNotThereIsAUsageError) {
  ChildRunner runner;
  try {
    (void)runner.run({"no-such-program"});
    ADD_FAILURE() << "it was started";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_NE(std::string(error.what()).find("cannot start no-such-program"), std::string::npos)
        << error.what();
  }
}

/// Sends a signal to this process when the child says that it is ready.
ChildEnd run_and_signal(ChildRunner& runner, const std::string& script, int number, int times) {
  const TemporaryDirectory place;
  const std::string ready = (place.path() / "ready").string();
  std::thread sender([&] {
    for (int i = 0; i < times; ++i) {
      while (!std::ifstream(ready)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      std::filesystem::remove(ready);
      kill(getpid(), number);
    }
  });
  const ChildEnd end = runner.run(shell("ready=" + ready + "; " + script));
  sender.join();
  return end;
}

TEST(ChildProcess, SignalsAskTheChildToStop) {
  for (const int number : {SIGINT, SIGTERM, SIGUSR1}) {
    ChildRunner runner;
    const ChildEnd end = run_and_signal(
        runner, "trap 'exit 75' USR1; touch $ready; while :; do sleep 0.01; done", number, 1);
    EXPECT_EQ(end.exit_code, 75);
    EXPECT_TRUE(end.stopped);
    EXPECT_TRUE(runner.stopped());
    EXPECT_FALSE(runner.wait(60)) << "there is nothing to wait for any more";
  }
}

TEST(ChildProcess, TheSecondSignalEndsIt) {
  ChildRunner runner;
  const ChildEnd end = run_and_signal(
      runner, "trap 'touch $ready' USR1; touch $ready; while :; do sleep 0.01; done", SIGINT, 2);
  EXPECT_EQ(end.exit_code, 128 + SIGTERM);
}

}  // namespace
}  // namespace tessera
