#include "runtime/watch/process_state.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

namespace tessera {
namespace {

TEST(ProcessState, ReadsAnyName) {
  EXPECT_EQ(state_in("12 (tessera) S 1 2 3"), 'S');
  EXPECT_EQ(state_in("12 (a) b) (c) T 1 2 3"), 'T');
  EXPECT_EQ(state_in(""), 'X');
  EXPECT_EQ(state_in("12 (tessera)"), 'X');
}

TEST(ProcessState, SeesAProcessStopAndEnd) {
  EXPECT_EQ(process_state(getpid()).state, 'R');
  const auto threads = threads_of(getpid());
  EXPECT_TRUE(std::count(threads.begin(), threads.end(), getpid()));
  const pid_t child = fork();
  if (child == 0) {
    kill(getpid(), SIGSTOP);
    _exit(0);
  }
  ASSERT_EQ(waitpid(child, nullptr, WUNTRACED), child);
  EXPECT_EQ(process_state(child).state, 'T');
  kill(child, SIGKILL);
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  EXPECT_EQ(process_state(child).state, 'X');
  EXPECT_TRUE(threads_of(child).empty());
  EXPECT_EQ(to_text('T'), "T (stopped)");
}

}  // namespace
}  // namespace tessera
