#include "checkpoint/fence.h"

#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <thread>

#include "tests/checkpoint/sample_run.h"

namespace tessera {
namespace {

using support::TemporaryDirectory;

TEST(Fence, RisesByOneAndKeepsTheRun) {
  const TemporaryDirectory place;
  const Directory checkpoints(place.path());
  const Fence first = raise_fence(checkpoints, 0, "", "host a");
  const Fence second = raise_fence(checkpoints, 0, "", "host b");
  EXPECT_EQ(first.epoch, 1);
  EXPECT_EQ(second.epoch, 2);
  EXPECT_EQ(first.run_uuid.size(), 32U);
  EXPECT_EQ(second.run_uuid, first.run_uuid);
  check_fence(checkpoints, second);
  EXPECT_FALSE(newer_incarnation(checkpoints, second).has_value());
  EXPECT_EQ(newer_incarnation(checkpoints, first), 2);
  EXPECT_THROW(check_fence(checkpoints, first), Error);
}

TEST(Fence, RunsHaveDifferentUuids) {
  const TemporaryDirectory place;
  const TemporaryDirectory other;
  EXPECT_NE(raise_fence(Directory(place.path()), 0, "", "").run_uuid,
            raise_fence(Directory(other.path()), 0, "", "").run_uuid);
}

TEST(Fence, SurvivesEmptyAndLostFences) {
  const TemporaryDirectory place;
  const Directory checkpoints(place.path());
  const std::string uuid = raise_fence(checkpoints, 0, "", "").run_uuid;
  std::ofstream(place.path() / "fence/e000002").close();  // its writer was killed
  const Fence third = raise_fence(checkpoints, 0, "", "");
  EXPECT_EQ(third.epoch, 3);
  EXPECT_EQ(third.run_uuid, uuid);
  std::filesystem::remove_all(place.path() / "fence");
  const Fence later = raise_fence(checkpoints, 8, uuid, "");
  EXPECT_EQ(later.epoch, 9);
  EXPECT_EQ(later.run_uuid, uuid);
}

TEST(Fence, NoTwoThatRaceGetTheSameEpoch) {
  const TemporaryDirectory place;
  std::vector<std::vector<int64_t>> epochs(4);
  std::vector<std::thread> jobs;
  for (auto& mine : epochs) {
    jobs.emplace_back([&mine, &place] {
      const Directory checkpoints(place.path());
      for (int i = 0; i < 10; ++i) mine.push_back(raise_fence(checkpoints, 0, "", "").epoch);
    });
  }
  for (std::thread& job : jobs) job.join();
  std::set<int64_t> all;
  for (const auto& mine : epochs) all.insert(mine.begin(), mine.end());
  EXPECT_EQ(all.size(), 40U);
}

}  // namespace
}  // namespace tessera
