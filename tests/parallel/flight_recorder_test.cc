#include "parallel/flight_recorder.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "tests/support/compare.h"

namespace tessera {
namespace {

class FlightRecorderTest : public testing::Test {
 protected:
  FlightRecorderTest() {
    directory_ = std::filesystem::path(testing::TempDir()) / concat("flight-", getpid());
    std::filesystem::create_directories(directory_);
  }
  ~FlightRecorderTest() override { std::filesystem::remove_all(directory_); }

  std::filesystem::path file() const { return directory_ / "ring-00003"; }

  std::filesystem::path directory_;
};

CollectiveRecord barrier(int group, int64_t number) {
  CollectiveRecord record;
  record.operation = Collective::kBarrier;
  record.group = group;
  record.number = number;
  record.file = short_path("/a/b/model/moe.cc");
  record.line = 7;
  return record;
}

TEST_F(FlightRecorderTest, SurvivesAKilledProcess) {
  const pid_t child = fork();
  if (child == 0) {
    FlightRecorder recorder;
    const int group = recorder.add_group("tensor", 4, 1, 2);
    recorder.complete(recorder.start(barrier(group, 0)));
    recorder.keep_in(file());
    recorder.set_identity(3, 8, "n2");
    recorder.set_step(17);
    recorder.set_layer(5);
    recorder.set_phase(Phase::kBackward);
    recorder.begin_wait(recorder.start(barrier(group, 1)));
    kill(getpid(), SIGKILL);
  }
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  const FlightFile found(file(), false);
  const FlightState& state = found.map().state;
  EXPECT_EQ(state.process, child);
  EXPECT_EQ(state.rank, 3);
  EXPECT_EQ(state.ranks, 8);
  EXPECT_STREQ(state.host.data(), "n2");
  EXPECT_EQ(state.step, 17);
  EXPECT_EQ(state.layer, 5);
  EXPECT_EQ(state.phase, Phase::kBackward);
  EXPECT_EQ(state.waits_in, 1);
  EXPECT_EQ(state.records, 2);
  EXPECT_EQ(state.end, FlightEnd::kRunning);
  ASSERT_EQ(state.groups, 1);
  const FlightGroup& group = found.map().groups[0];
  EXPECT_STREQ(group.name.data(), "tensor");
  EXPECT_EQ(group.first, 4);
  EXPECT_EQ(group.started, 2);
  EXPECT_EQ(group.completed, 0);
  const auto first = read_record(found.map(), 0);
  ASSERT_TRUE(first.has_value());
  EXPECT_GE(first->completed, first->started);
  const auto second = read_record(found.map(), 1);
  ASSERT_TRUE(second.has_value());
  EXPECT_EQ(second->completed, 0);
  EXPECT_EQ(second->step, 17);
  EXPECT_EQ(second->layer, 5);
  EXPECT_STREQ(second->file.data(), "model/moe.cc");
  EXPECT_FALSE(read_record(found.map(), 2).has_value());
}

TEST_F(FlightRecorderTest, CountsWhatAStepIsBusy) {
  FlightRecorder recorder;
  const int group = recorder.add_group("world", 0, 0, 2);
  for (int64_t step = 1; step <= 3; ++step) {
    recorder.set_step(step);
    recorder.set_phase(Phase::kForward);
    recorder.begin_wait(recorder.start(barrier(group, step - 1)));
    usleep(2000);
    recorder.end_wait();
    recorder.finish_step();
  }
  const FlightState& state = recorder.map().state;
  EXPECT_EQ(state.steps, 3);
  EXPECT_EQ(state.phase, Phase::kBetweenSteps);
  EXPECT_EQ(state.waits_in, -1);
  EXPECT_GE(state.waited, 6'000'000);
  EXPECT_GE(state.last_step, 2'000'000);
  EXPECT_GE(state.busy, 0);
}

TEST_F(FlightRecorderTest, ForgetsTheOldest) {
  FlightRecorder recorder;
  const int group = recorder.add_group("world", 0, 0, 2);
  const int64_t first = recorder.start(barrier(group, 0));
  for (int64_t i = 0; i < FlightMap::kRecords; ++i) recorder.start(barrier(group, i + 1));
  recorder.complete(first);
  EXPECT_FALSE(read_record(recorder.map(), first).has_value());
  EXPECT_EQ(read_record(recorder.map(), FlightMap::kRecords)->completed, 0);
}

TEST_F(FlightRecorderTest, HasRoomForSomeGroups) {
  FlightRecorder recorder;
  for (int i = 0; i < FlightMap::kGroups; ++i) {
    EXPECT_EQ(recorder.add_group(std::string(99, 'x'), 0, 0, 1), i);
  }
  EXPECT_EQ(recorder.add_group("one more", 0, 0, 1), -1);
  recorder.complete(recorder.start(barrier(-1, 0)));
  EXPECT_EQ(std::string(recorder.map().groups[0].name.data()), std::string(35, 'x'));
}

TEST_F(FlightRecorderTest, RefusesOtherFiles) {
  const auto refused = concat(file().string(),
                              " is no flight record of this version of tessera; "
                              "use the tessera that wrote it");
  support::expect_error([&] { FlightFile(file(), false); }, refused);
  std::ofstream(file()) << "short";
  support::expect_error([&] { FlightFile(file(), false); }, refused);
  std::ofstream(file()) << std::string(sizeof(FlightMap), 'x');
  support::expect_error([&] { FlightFile(file(), false); }, refused);
  FlightRecorder recorder;
  support::expect_error(
      [&] { recorder.keep_in(directory_ / "none" / "ring"); },
      concat("cannot keep the flight recorder in ", (directory_ / "none" / "ring").string(),
             ": No such file or directory; check that it is writable and has ",
             sizeof(FlightMap) >> 10, " KiB of space"));
}

TEST(ShortPath, KeepsTheLastParts) {
  EXPECT_STREQ(short_path("/x/y/model/moe.cc").data(), "model/moe.cc");
  EXPECT_STREQ(short_path("model/moe.cc").data(), "model/moe.cc");
  EXPECT_STREQ(short_path("moe.cc").data(), "moe.cc");
  EXPECT_EQ(std::string(short_path(("a/" + std::string(60, 'b')).c_str()).data()),
            std::string(47, 'b'));
}

TEST(Phase, HasNames) {
  EXPECT_STREQ(name_of(Phase::kSetup), "setup");
  EXPECT_STREQ(name_of(Phase::kBackward), "backward");
  EXPECT_STREQ(name_of(Phase::kEnd), "end");
  EXPECT_TRUE(in_step(Phase::kUpdate));
  EXPECT_FALSE(in_step(Phase::kBetweenSteps));
}

TEST(Collective, HasNames) {
  EXPECT_STREQ(name_of(Collective::kAllReduce), "all_reduce");
  EXPECT_STREQ(name_of(Collective::kExchangeRows), "exchange_rows");
  EXPECT_STREQ(name_of(Collective::kSplit), "split");
}

}  // namespace
}  // namespace tessera
