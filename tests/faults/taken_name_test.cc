#include <gtest/gtest.h>

#include <atomic>

#include "kernels/core/log.h"
#include "parallel/thread_communicator.h"
#include "tests/checkpoint/sample_run.h"
#include "tests/faults/campaign.h"
#include "tests/faults/run_check.h"
#include "tests/faults/silence.h"
#include "tests/faults/storage_calls.h"

// The narrowest meetings of two jobs: between any two storage calls of a save a newer job starts,
// clears away what it finds, and saves. The older one must never take the newer one's directory for
// its own.

namespace tessera::faults {
namespace {

/// Starts another job after a certain call.
class NewerJob : public StorageWatcher {
 public:
  NewerJob(SaveJob job, int64_t moment) : job_(std::move(job)), moment_(moment) {}
  ~NewerJob() override { watch_storage(nullptr); }

  /// Counts the calls from now on.
  void arm() { watch_storage(this); }
  Verdict before(const StorageCall&) override { return {}; }
  void after(const StorageCall&, int64_t) override {
    if (++calls_ != moment_) return;
    watch_storage(nullptr);
    run_ranks(1, [&](Communicator& world) {
      save_steps(world, job_, [&](const Message& message) {
        if (message.event == Event::kCommitted) committed_.push_back(message.step);
      });
    });
  }
  const std::vector<int64_t>& committed() const { return committed_; }

 private:
  SaveJob job_;
  int64_t moment_;
  std::atomic<int64_t> calls_ = 0;
  std::vector<int64_t> committed_;
};

// Two steps of an older job; in the second one a newer job comes. False when it never came.
bool meet(int64_t moment) {
  const support::TemporaryDirectory place;
  SaveJob job{.run = place.path(), .keep_last = 2, .steps = 1, .faults = {}};
  const Silence silence;
  NewerJob newer(job, moment);
  job.steps = 2;
  std::vector<int64_t> committed;
  try {
    run_ranks(1, [&](Communicator& world) {
      save_steps(world, job, [&](const Message& message) {
        if (message.event != Event::kCommitted) return;
        committed.push_back(message.step);
        if (message.step == 1) newer.arm();
      });
    });
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kTryAgain) << error.what();
  }
  if (newer.committed().empty()) return false;
  committed.insert(committed.end(), newer.committed().begin(), newer.committed().end());
  int64_t newest = 0;
  EXPECT_EQ(violations(job, committed, newest), std::vector<std::string>{});
  EXPECT_EQ(newest, newer.committed().back());
  return true;
}

TEST(StorageFaults, NoCallOfASaveIsFooledByANewerJob) {
  Campaign campaign("a newer job between two calls");
  int64_t moment = 1;
  for (; meet(moment); ++moment) SCOPED_TRACE(moment);
  campaign.points(moment - 1, 0);
  EXPECT_GT(moment, 50);
}

}  // namespace
}  // namespace tessera::faults
