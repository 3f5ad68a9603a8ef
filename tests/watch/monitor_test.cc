#include "runtime/watch/monitor.h"

#include <gtest/gtest.h>

#include "tests/watch/imagined_job.h"

namespace tessera {
namespace {

constexpr int64_t kTenth = 100'000'000;

/// Four ranks whose watchers tell once a second how they are.
class MonitorTest : public testing::Test {
 protected:
  void heartbeats() {
    for (int r = 0; r < 4; ++r) {
      if (!silent_[static_cast<size_t>(r)]) {
        monitor_.hear(r,
                      {.now = now_,
                       .concern = job_.rank(r).concern,
                       .unused = 0,
                       .state = job_.rank(r).state},
                      now_);
      }
    }
  }

  /// Runs for so many seconds; the last order.
  WatchOrder run(double seconds) {
    WatchOrder order = WatchOrder::kGoOn;
    for (int tenth = 0; tenth < 10 * seconds; ++tenth) {
      now_ += kTenth;
      heartbeats();
      order = monitor_.tick(now_, news_);
      if (order != WatchOrder::kReport) continue;
      for (int r = 0; r < 4; ++r) {
        if (!silent_[static_cast<size_t>(r)]) monitor_.hear(job_.rank(r));
      }
    }
    return order;
  }

  ImaginedJob job_;
  int64_t now_ = 1000 * kTenth;
  std::array<bool, 4> silent_{};
  Monitor monitor_{4, WatchLimits{}, now_};
  MonitorNews news_;
};

TEST_F(MonitorTest, IsQuietWhileAllIsWell) {
  EXPECT_EQ(run(100), WatchOrder::kGoOn);
  EXPECT_TRUE(news_.lines.empty());
}

TEST_F(MonitorTest, AsksThenSaysOnceThenEndsTheJob) {
  run(3);
  for (const int r : {0, 1, 3}) job_.block(r, ImaginedJob::kWorld);
  job_.rank(0).concern = Concern::kSlow;
  EXPECT_EQ(run(0.5), WatchOrder::kReport);
  EXPECT_TRUE(news_.lines.empty());
  EXPECT_EQ(run(2), WatchOrder::kWriteDown);
  ASSERT_EQ(news_.lines.size(), 3u);
  EXPECT_TRUE(
      news_.lines[0].starts_with("HANG step 7 phase forward layer 1 after 60.0 s: rank 2 (n2)"))
      << news_.lines[0];
  EXPECT_EQ(news_.suspects, std::vector<std::string>{"n2"});
  EXPECT_TRUE(news_.lines[1].ends_with("-> LOCAL HANG")) << news_.lines[1];
  EXPECT_EQ(news_.lines[2], "  action: all ranks end with 75, to be run again");
  for (int r = 0; r < 4; ++r) monitor_.leave(r);
  EXPECT_EQ(run(0.1), WatchOrder::kEnd);
  EXPECT_EQ(news_.lines.size(), 3u);
}

TEST_F(MonitorTest, EndsTheJobThoughSomeNeverWriteDown) {
  job_.rank(0).concern = Concern::kSlow;
  EXPECT_EQ(run(5), WatchOrder::kWriteDown);
  EXPECT_EQ(run(21), WatchOrder::kEnd);
}

TEST_F(MonitorTest, MissesASilentHost) {
  run(3);
  silent_[2] = silent_[3] = true;
  EXPECT_EQ(run(14), WatchOrder::kGoOn);
  EXPECT_EQ(run(3), WatchOrder::kWriteDown);
  ASSERT_FALSE(news_.lines.empty());
  EXPECT_NE(news_.lines[0].find("no word from n2 (ranks 2 and 3)"), std::string::npos)
      << news_.lines[0];
}

TEST_F(MonitorTest, ForgivesAfterItsOwnSleep) {
  run(3);
  now_ += 1000 * kTenth;
  monitor_.forgive(now_);
  EXPECT_EQ(run(3), WatchOrder::kGoOn);
  EXPECT_TRUE(news_.lines.empty());
}

TEST_F(MonitorTest, DoesNotMissThoseThatHaveLeft) {
  run(3);
  silent_[3] = true;
  monitor_.leave(3);
  EXPECT_EQ(run(60), WatchOrder::kGoOn);
}

// The rank that met an error tells it; the monitor adds where the ranks parted, and no more.
TEST_F(MonitorTest, ExplainsAnErrorOnlyByAMismatch) {
  run(3);
  job_.rank(1).concern = Concern::kFailed;
  EXPECT_EQ(run(3), WatchOrder::kGoOn);
  EXPECT_TRUE(news_.lines.empty());
}

TEST_F(MonitorTest, ShowsTheMismatchBehindAnError) {
  run(3);
  for (const int r : {0, 1, 2}) job_.block(r, ImaginedJob::kWorld, {.line = 20});
  job_.block(3, ImaginedJob::kWorld, {.line = 30});
  job_.rank(3).concern = Concern::kFailed;
  EXPECT_EQ(run(3), WatchOrder::kGoOn);
  ASSERT_EQ(news_.lines.size(), 3u);
  EXPECT_TRUE(news_.suspects.empty());
  EXPECT_NE(news_.lines[0].find("model/moe.cc:30"), std::string::npos);
  EXPECT_NE(news_.lines[0].find("model/moe.cc:20"), std::string::npos);
  EXPECT_EQ(news_.lines[2], "  action: the error ends the job");
}

TEST_F(MonitorTest, NamesAStraggler) {
  for (int second = 0; second < 100; ++second) {
    for (int r = 0; r < 4; ++r) {
      FlightState& state = job_.rank(r).state;
      state.steps += 10;
      state.busy += r == 2 ? 400'000'000 : 200'000'000;
    }
    run(1);
  }
  ASSERT_EQ(news_.lines.size(), 1u);
  EXPECT_TRUE(
      news_.lines[0].starts_with("straggler: rank 2 (n2) is busy for 40 ms a step, the median "
                                 "rank for 20 ms"))
      << news_.lines[0];
}

}  // namespace
}  // namespace tessera
