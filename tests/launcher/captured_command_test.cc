#include "launcher/captured_command.h"

#include <gtest/gtest.h>

#include <csignal>
#include <fstream>
#include <thread>

#include "tests/checkpoint/sample_run.h"

namespace tessera {
namespace {

using support::TemporaryDirectory;

CapturedCommand shell(const std::string& script, const CaptureLimits& limits = {}) {
  return capture_command({"sh", "-c", script}, limits);
}

TEST(CapturedCommand, KeepsBothOutputsApart) {
  const CapturedCommand said = shell("echo one; echo two >&2; printf three");
  EXPECT_TRUE(said.ok()) << said.trouble;
  EXPECT_EQ(said.exit_code, 0);
  EXPECT_EQ(said.output, "one\nthree");
  EXPECT_EQ(said.errors, "two\n");
}

TEST(CapturedCommand, WordsAreNotForAShell) {
  EXPECT_EQ(capture_command({"echo", "$HOME;  *", ""}).output, "$HOME;  * \n");
}

TEST(CapturedCommand, HasNoInput) {
  EXPECT_EQ(shell("cat; echo end").output, "end\n");
}

TEST(CapturedCommand, TellsTheExitCodeAndTheLastLine) {
  const CapturedCommand said = shell("echo first >&2; echo 'no such host' >&2; echo >&2; exit 75");
  EXPECT_EQ(said.exit_code, 75);
  EXPECT_FALSE(said.timed_out);
  EXPECT_EQ(said.trouble, "sh ended with 75: no such host");
  EXPECT_EQ(shell("exit 3").trouble, "sh ended with 3");
  EXPECT_EQ(shell("kill -KILL $$").exit_code, 128 + SIGKILL);
}

TEST(CapturedCommand, WhatIsNotThereIsTold) {
  const CapturedCommand said = capture_command({"no-such-program", "x"});
  EXPECT_EQ(said.exit_code, 127);
  EXPECT_EQ(said.trouble,
            "cannot start no-such-program: No such file or directory; is it installed and in "
            "PATH?");
}

TEST(CapturedCommand, EndsTheWholeGroupWhenItsTimeIsOver) {
  const TemporaryDirectory place;
  const std::string alive = (place.path() / "alive").string();
  const CapturedCommand said = shell(
      "echo begun; (while :; do touch " + alive + "; sleep 0.01; done) & wait", {.seconds = 1});
  EXPECT_TRUE(said.timed_out);
  EXPECT_EQ(said.exit_code, 128 + SIGTERM);
  EXPECT_EQ(said.trouble, "sh did not end within 1 s");
  EXPECT_EQ(said.output, "begun\n");
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  std::filesystem::remove(alive);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_FALSE(std::filesystem::exists(alive)) << "the child of the child goes on";
}

TEST(CapturedCommand, TermIsAskedBeforeKill) {
  const CaptureLimits limits{.seconds = 1, .grace = 20};
  EXPECT_EQ(shell("trap 'echo mended; exit 9' TERM; while :; do sleep 0.01; done", limits).output,
            "mended\n");
  const CapturedCommand deaf =
      shell("trap '' TERM; while :; do sleep 0.01; done", {.seconds = 1, .grace = 0.2});
  EXPECT_EQ(deaf.exit_code, 128 + SIGKILL);
  EXPECT_TRUE(deaf.timed_out);
}

TEST(CapturedCommand, WhatIsLeftBehindIsNotWaitedFor) {
  const CapturedCommand said = shell("setsid sleep 30 & echo gone");
  EXPECT_TRUE(said.ok()) << said.trouble;
  EXPECT_EQ(said.output, "gone\n");
  EXPECT_LT(said.seconds, 20);
}

TEST(CapturedCommand, ALongOutputIsCutButReadToItsEnd) {
  const CapturedCommand said =
      shell("head -c 3000000 /dev/zero; echo end >&2", {.most_bytes = 1000});
  EXPECT_TRUE(said.ok()) << said.trouble;
  EXPECT_EQ(said.output.size(), 1000u);
  EXPECT_EQ(said.errors, "end\n");
}

TEST(CapturedCommand, NeedsNoTimeWhenItsOutputsAreClosed) {
  const CapturedCommand said = shell("exec >&- 2>&-; sleep 0.1; exit 4");
  EXPECT_EQ(said.exit_code, 4);
}

TEST(CapturedCommand, ManyAtOnceDoNotWaitForEachOther) {
  std::vector<CapturedCommand> said(16);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < said.size(); ++i) {
    threads.emplace_back([&, i] { said[i] = shell("sleep 0.2; echo " + std::to_string(i)); });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < said.size(); ++i) EXPECT_EQ(said[i].output, std::to_string(i) + "\n");
}

}  // namespace
}  // namespace tessera
