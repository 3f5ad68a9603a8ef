#include "launcher/left_over_ranks.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "kernels/core/error.h"
#include "launcher/start_process.h"

namespace tessera {
namespace {

/// A process that knows of a launch.
pid_t rank_of(const std::string& launch) {
  return start_process({"env", concat(kLaunchVariable, "=", launch), "sleep", "60"});
}

TEST(LeftOverRanks, ThoseOfTheLaunchAreEnded) {
  const std::string launch = concat("test", getpid());
  const pid_t one = rank_of(launch);
  const pid_t two = rank_of(launch);
  const pid_t other = rank_of(launch + "x");
  // Until `env` has become `sleep`, they cannot be told apart from others.
  LeftOverRanks ended;
  for (int i = 0; i < 500 && ended.ended < 2; ++i) {
    ended.ended += end_left_over_ranks(launch).ended;
    usleep(10'000);
  }
  EXPECT_EQ(ended.ended, 2);
  EXPECT_EQ(end_left_over_ranks(launch).remaining, 0);
  int status = 0;
  for (const pid_t rank : {one, two}) {
    ASSERT_EQ(waitpid(rank, &status, 0), rank);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  }
  EXPECT_EQ(waitpid(other, &status, WNOHANG), 0) << "it belongs to another launch";
  kill(other, SIGKILL);
  waitpid(other, &status, 0);
}

}  // namespace
}  // namespace tessera
