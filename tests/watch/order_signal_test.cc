#include "runtime/watch/order_signal.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <iterator>

#include "kernels/core/error.h"

namespace tessera {
namespace {

/// A process that obeys, and hangs.
class OrderSignalTest : public testing::Test {
 protected:
  void SetUp() override {
    stacks_ = std::filesystem::path(testing::TempDir()) / concat("stacks-", getpid());
    descriptor_ = open(stacks_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600);
    int ready[2];
    ASSERT_EQ(pipe(ready), 0);
    child_ = fork();
    if (child_ == 0) {
      obey_watcher();
      (void)!write(ready[1], "x", 1);
      while (true) pause();
    }
    char x = 0;
    ASSERT_EQ(read(ready[0], &x, 1), 1);
    close(ready[0]);
    close(ready[1]);
  }

  void TearDown() override {
    kill(child_, SIGKILL);
    waitpid(child_, nullptr, 0);
    close(descriptor_);
    std::filesystem::remove(stacks_);
  }

  int exit_code() {
    int status = 0;
    return waitpid(child_, &status, 0) == child_ && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  std::filesystem::path stacks_;
  int descriptor_ = -1;
  pid_t child_ = 0;
};

TEST_F(OrderSignalTest, WritesStacksAndGoesOn) {
  for (int i = 0; i < 2; ++i) ask_for_stacks(child_, stacks_, descriptor_);
  std::ifstream in(stacks_);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  EXPECT_NE(text.find(concat("thread ", child_, " ")), std::string::npos) << text;
  EXPECT_NE(text.find("pause"), std::string::npos) << text;
  EXPECT_TRUE(text.ends_with("end\n")) << text;
  EXPECT_EQ(waitpid(child_, nullptr, WNOHANG), 0);
}

TEST_F(OrderSignalTest, EndsTheProcess) {
  order_exit(child_);
  EXPECT_EQ(exit_code(), 75);
}

TEST_F(OrderSignalTest, EndsAStoppedProcess) {
  kill(child_, SIGSTOP);
  ASSERT_EQ(waitpid(child_, nullptr, WUNTRACED), child_);
  order_exit(child_);
  EXPECT_EQ(exit_code(), 75);
}

}  // namespace
}  // namespace tessera
