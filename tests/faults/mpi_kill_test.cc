#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <fstream>
#include <thread>

#include "tests/checkpoint/sample_run.h"
#include "tests/faults/campaign.h"
#include "tests/faults/child_job.h"
#include "tests/faults/run_check.h"

// As kill_test.cc, with real MPI: one rank dies, by a fail point or at any moment, and the others
// live on until mpirun notices.

namespace tessera::faults {
namespace {

constexpr int64_t kMaxRanks = 3;

std::vector<std::string> command(const SaveJob& job, int64_t ranks, const std::string& point) {
  return {MPIEXEC,
          "-q",
          "--allow-run-as-root",
          "--oversubscribe",
          "--bind-to",
          "none",
          "-np",
          std::to_string(ranks),
          SAVE_RANKS,
          job.run.string(),
          std::to_string(job.keep_last),
          std::to_string(job.steps),
          point};
}

// The processes that `parent` has started.
std::vector<pid_t> children_of(pid_t parent) {
  std::vector<pid_t> children;
  std::ifstream list(concat("/proc/", parent, "/task/", parent, "/children"));
  for (pid_t child = 0; list >> child;) children.push_back(child);
  return children;
}

TEST(MpiFaults, ARankThatIsKilledLeavesTheNewestAcknowledgedCheckpoint) {
  Campaign campaign("SIGKILL of one MPI rank");
  std::mt19937_64 random = random_of(8);
  const support::TemporaryDirectory place;
  SaveJob job{.run = place.path(), .keep_last = 2, .faults = {}};
  std::vector<int64_t> acknowledged;
  int64_t newest = 0;
  for (const int64_t points = points_of(8); campaign.points() < points;) {
    const int64_t ranks = pick(random, 2, kMaxRanks);
    const bool at_a_stage = pick(random, 0, 1) == 0;
    std::string point;
    if (at_a_stage) {
      point = kSaveStages[static_cast<size_t>(pick(random, 0, kSaveStages.size() - 1))];
      std::replace(point.begin(), point.end(), ' ', '_');
      point = concat("ckpt.", point, ":kill@rank", pick(random, 0, ranks - 1), "#2");
    }
    job.steps = at_a_stage ? 8 : 0;
    ChildJob child(command(job, ranks, point));
    child.wait_for([](const Told& told) { return !told.committed.empty(); });
    if (!at_a_stage) {
      std::this_thread::sleep_for(std::chrono::microseconds(pick(random, 0, 20'000)));
      const std::vector<pid_t> processes = children_of(child.id());
      ASSERT_FALSE(processes.empty()) << child.told().ended;
      kill(processes[static_cast<size_t>(pick(random, 0, std::ssize(processes) - 1))], SIGKILL);
    }
    const int status = child.wait();
    EXPECT_TRUE(exit_code(status) == 128 + SIGKILL || (at_a_stage && exit_code(status) == 0))
        << point << ": mpirun ended with " << exit_code(status) << " " << child.told().ended;
    const std::vector<int64_t>& committed = child.told().committed;
    // A stage may come twice within the first save.
    ASSERT_TRUE(at_a_stage || !committed.empty()) << child.told().ended;
    acknowledged.insert(acknowledged.end(), committed.begin(), committed.end());
    const std::vector<std::string> wrong = violations(job, acknowledged, newest);
    campaign.point(wrong, concat(ranks, " ranks ", point));
    if (!wrong.empty()) return;
  }
  campaign.note(concat(newest, " checkpoints committed"));
}

}  // namespace
}  // namespace tessera::faults
