#include <gtest/gtest.h>

#include <csignal>
#include <thread>

#include "tests/faults/campaign.h"
#include "tests/faults/child_job.h"
#include "tests/faults/lost_disk.h"
#include "tests/faults/run_check.h"

// A job saves to a file system of its own, whose power fails: at a stage of a save, where the job
// has stopped itself, or at any moment. After the journal is replayed: run_check.h.

namespace tessera::faults {
namespace {

constexpr int64_t kMaxRanks = 3;

// One life of the job, to the loss of its disk.
void live(const LostDisk& disk, SaveJob job, std::mt19937_64& random,
          std::vector<int64_t>& acknowledged, std::string& how) {
  const int64_t ranks = pick(random, 1, kMaxRanks);
  const bool at_a_stage = pick(random, 0, 1) == 0;
  if (at_a_stage) {
    std::string stage = kSaveStages[static_cast<size_t>(pick(random, 0, kSaveStages.size() - 1))];
    how = concat(ranks, " ranks, ", stage);
    std::replace(stage.begin(), stage.end(), ' ', '_');
    job.faults = FailPoints(concat("ckpt.", stage, ":stop#", pick(random, 1, 2)));
    job.steps = job.keep_last + 2;
  }
  const bool in_the_start = pick(random, 0, 7) == 0;
  const std::chrono::microseconds delay(pick(random, 0, 10'000));
  ChildJob child(job, static_cast<int>(ranks));
  if (at_a_stage) {
    child.wait_until_stopped();
  } else {
    if (!in_the_start) child.wait_for([](const Told& told) { return !told.committed.empty(); });
    std::this_thread::sleep_for(delay);
    how = concat(ranks, " ranks, ", delay.count(), " us after its ",
                 in_the_start ? "start" : "first save");
  }
  disk.cut_power();
  // What was durable before is acknowledged still; what comes then must be failures, not crashes.
  const bool alive = at_a_stage || in_the_start ||
                     child.wait_for([](const Told& told) { return !told.failed.empty(); });
  EXPECT_TRUE(alive) << how << ": it ended: " << child.told().ended;
  child.send(SIGKILL);
  child.wait();
  const std::vector<int64_t>& committed = child.told().committed;
  acknowledged.insert(acknowledged.end(), committed.begin(), committed.end());
}

void lose_power(const std::string& type, uint64_t seed) {
  const std::string obstacle = LostDisk::obstacle(type);
  if (!obstacle.empty()) GTEST_SKIP() << "no power can be cut here: " << obstacle;
  Campaign campaign("power loss on " + type);
  std::mt19937_64 random = random_of(seed);
  LostDisk disk(type);
  int64_t newest = 0;
  std::vector<int64_t> acknowledged;
  for (const int64_t points = points_of(500); campaign.points() < points;) {
    const SaveJob job{.run = disk.path() / "run", .keep_last = 2, .faults = {}};
    std::string how;
    live(disk, job, random, acknowledged, how);
    disk.restore_power();
    const std::vector<std::string> wrong = violations(job, acknowledged, newest);
    campaign.point(wrong, how);
    if (!wrong.empty()) return;
  }
  campaign.note(concat(newest, " checkpoints committed"));
}

TEST(Faults, PowerLossOnExt4LeavesTheNewestAcknowledgedCheckpoint) {
  lose_power("ext4", 2);
}

TEST(Faults, PowerLossOnXfsLeavesTheNewestAcknowledgedCheckpoint) {
  lose_power("xfs", 3);
}

}  // namespace
}  // namespace tessera::faults
