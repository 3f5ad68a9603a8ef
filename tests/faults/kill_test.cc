#include <gtest/gtest.h>

#include <csignal>
#include <thread>

#include "tests/checkpoint/sample_run.h"
#include "tests/faults/campaign.h"
#include "tests/faults/child_job.h"
#include "tests/faults/run_check.h"

// A job is killed, over and over: at a stage of a save that one of its ranks has reached, or at any
// moment of its start or of its saves. Each life has another number of ranks, so that every
// checkpoint is read by another mesh than the one that wrote it. After each life: run_check.h.

namespace tessera::faults {
namespace {

constexpr int64_t kPointsOfARun = 100;
constexpr int64_t kMaxRanks = 4;

std::string random_stage(std::mt19937_64& random) {
  std::string stage = kSaveStages[static_cast<size_t>(pick(random, 0, kSaveStages.size() - 1))];
  std::replace(stage.begin(), stage.end(), ' ', '_');
  return "ckpt." + stage;
}

// One life of the job, to its death. False when the point was never reached.
bool live(SaveJob job, std::mt19937_64& random, std::vector<int64_t>& acknowledged,
          std::string& how) {
  const int64_t ranks = pick(random, 1, kMaxRanks);
  const bool at_a_stage = pick(random, 0, 1) == 0;
  how = concat(ranks, " ranks, ");
  if (at_a_stage) {
    const std::string point = concat(random_stage(random), ":kill@rank", pick(random, 0, ranks - 1),
                                     "#", pick(random, 1, 3));
    how += point;
    job.faults = FailPoints(point);
    job.steps = job.keep_last + 3;
  }
  const bool in_the_start = pick(random, 0, 3) == 0;
  const std::chrono::microseconds delay(pick(random, 0, 15'000));
  ChildJob child(job, static_cast<int>(ranks));
  if (!at_a_stage) {
    if (!in_the_start) child.wait_for([](const Told& told) { return !told.committed.empty(); });
    std::this_thread::sleep_for(delay);
    child.send(SIGKILL);
    how += concat(delay.count(), " us after its ", in_the_start ? "start" : "first save");
  }
  const int status = child.wait();
  const Told& told = child.told();
  acknowledged.insert(acknowledged.end(), told.committed.begin(), told.committed.end());
  EXPECT_TRUE(was_killed(status) || (at_a_stage && exit_code(status) == 0))
      << how << ": it ended with " << exit_code(status) << " " << told.ended;
  EXPECT_TRUE(told.failed.empty()) << how << ": " << told.failed.front().text;
  return was_killed(status);
}

TEST(Faults, AnyKillLeavesTheNewestAcknowledgedCheckpoint) {
  Campaign campaign("SIGKILL");
  std::mt19937_64 random = random_of(1);
  const int64_t points = points_of(1000);
  int64_t calm = 0;
  int64_t saves = 0;
  while (campaign.points() < points) {
    const support::TemporaryDirectory place;
    SaveJob job{.run = place.path(), .keep_last = pick(random, 1, 3), .faults = {}};
    std::vector<int64_t> acknowledged;
    int64_t newest = 0;
    for (int64_t i = 0; i < kPointsOfARun && campaign.points() < points; ++i) {
      std::string how;
      const bool died = live(job, random, acknowledged, how);
      const std::vector<std::string> wrong = violations(job, acknowledged, newest);
      if (died || !wrong.empty()) campaign.point(wrong, how);
      calm += died ? 0 : 1;
      if (!wrong.empty()) return;  // what follows would be about the same damage
    }
    saves += newest;
  }
  campaign.note(concat(saves, " checkpoints committed; ", calm, " points not reached"));
}

}  // namespace
}  // namespace tessera::faults
