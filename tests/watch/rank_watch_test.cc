#include "runtime/watch/rank_watch.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <iterator>
#include <thread>

#include "parallel/self_communicator.h"
#include "runtime/watch/flight_dump.h"

namespace tessera {
namespace {

/// Runs of one rank, each a process of its own with a watcher beside it.
class RankWatchTest : public testing::Test {
 protected:
  RankWatchTest() { std::filesystem::create_directories(run_); }
  ~RankWatchTest() override { std::filesystem::remove_all(run_); }

  /// The exit code of a rank that does `work`; 128 and more: a signal killed it.
  template <class Work>
  int rank(Work work) {
    const pid_t child = fork();
    if (child == 0) _exit(live(work));
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

  template <class Work>
  int live(Work work) {
    try {
      RankWatch watch;
      SelfCommunicator world;
      watch.begin(run_, {.setup = 1, .stopped = 1, .silence = 2, .lease = 2}, world);
      work(watch, world);
      return 0;
    } catch (const Error& error) {
      return static_cast<int>(error.code());
    }
  }

  std::string text_of(const std::filesystem::path& file) const {
    std::ifstream in(file);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  /// The watcher of a rank that was killed may still be writing.
  bool comes(const std::filesystem::path& file) const {
    for (int wait = 0; wait < 300 && !std::filesystem::exists(file); ++wait) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    return std::filesystem::exists(file);
  }

  std::filesystem::path run_ =
      std::filesystem::path(testing::TempDir()) / concat("rank-watch-", getpid());
  std::filesystem::path flight_ = run_ / "flight";
};

TEST_F(RankWatchTest, LeavesNothingAfterAnOrderlyEnd) {
  EXPECT_EQ(rank([](RankWatch& watch, Communicator&) { watch.forget(); }), 0);
  EXPECT_FALSE(std::filesystem::exists(flight_));
}

TEST_F(RankWatchTest, EndsARankThatHangs) {
  EXPECT_EQ(rank([](RankWatch&, Communicator&) {
              while (true) pause();
            }),
            75);
  EXPECT_NE(text_of(hang_file(flight_)).find("rank 0"), std::string::npos);
  EXPECT_NE(text_of(run_ / "log.txt").find("HANG phase setup after"), std::string::npos);
  EXPECT_NE(text_of(stacks_file(flight_, 0)).find("pause"), std::string::npos);
  EXPECT_TRUE(std::filesystem::exists(dump_file(flight_, 0)));
  // The next life keeps it.
  EXPECT_EQ(rank([](RankWatch& watch, Communicator&) { watch.forget(); }), 0);
  EXPECT_TRUE(std::filesystem::exists(hang_file(run_ / "flight.previous")));
}

TEST_F(RankWatchTest, EndsARankThatIsStopped) {
  EXPECT_EQ(rank([](RankWatch&, Communicator& world) {
              world.log().set_phase(Phase::kBetweenSteps);
              kill(getpid(), SIGSTOP);
              while (true) pause();
            }),
            75);
  EXPECT_NE(text_of(hang_file(flight_)).find("T (stopped)"), std::string::npos)
      << text_of(hang_file(flight_));
}

TEST_F(RankWatchTest, KeepsTheRecordOfAKilledRank) {
  EXPECT_EQ(rank([](RankWatch&, Communicator& world) {
              world.log().set_place(17, 3);
              world.barrier();
              kill(getpid(), SIGKILL);
            }),
            128 + SIGKILL);
  EXPECT_TRUE(comes(dump_file(flight_, 0)));
  EXPECT_EQ(FlightFile(ring_file(flight_, 0), false).map().state.step, 17);
}

TEST_F(RankWatchTest, LooksWhenARankFails) {
  EXPECT_EQ(rank([](RankWatch& watch, Communicator&) {
              watch.fail();
              _exit(1);
            }),
            1);
  EXPECT_TRUE(std::filesystem::exists(dump_file(flight_, 0)));
  EXPECT_FALSE(std::filesystem::exists(hang_file(flight_)));
}

TEST_F(RankWatchTest, IsNotNeeded) {
  RankWatch none(false);
  SelfCommunicator world;
  none.begin(run_, {}, world);
  none.fail();
  none.end();
  EXPECT_FALSE(std::filesystem::exists(flight_));
}

TEST_F(RankWatchTest, SaysWhereItCannotWrite) {
  std::filesystem::remove_all(run_);
  std::ofstream(run_) << "a file";
  EXPECT_EQ(rank([](RankWatch&, Communicator&) {}), 2);
}

}  // namespace
}  // namespace tessera
