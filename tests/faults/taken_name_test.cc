#include <gtest/gtest.h>

#include <optional>

#include "checkpoint/layout.h"
#include "kernels/core/log.h"
#include "parallel/thread_communicator.h"
#include "tests/checkpoint/sample_run.h"
#include "tests/faults/run_check.h"
#include "tests/faults/silence.h"
#include "tests/faults/storage_calls.h"

// The narrowest meeting of two jobs: the older one has made the directory of a checkpoint and not
// yet opened it, when the newer one starts, clears it away, and saves the same step. The older one
// must not take the newer one's directory for its own.

namespace tessera::faults {
namespace {

constexpr int64_t kStep = 2;

/// Starts another job when the directory of step 2 has been made, or is about to be opened.
class NewerJob : public StorageWatcher {
 public:
  explicit NewerJob(SaveJob job) : job_(std::move(job)) { watch_storage(this); }
  ~NewerJob() override { watch_storage(nullptr); }

  Verdict before(const StorageCall&) override { return {}; }
  void after(const StorageCall& call, int64_t result) override {
    if (call.kind != CallKind::kMakeDirectory || result != 0) return;
    if (step_of_name(call.path) != kStep) return;
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
  std::vector<int64_t> committed_;
};

TEST(StorageFaults, TheNameOfADirectoryIsNeverTakenForTheDirectory) {
  const support::TemporaryDirectory place;
  SaveJob job{.run = place.path(), .keep_last = 2, .steps = 1, .faults = {}};
  const Silence silence;
  NewerJob newer(job);  // resumes from step 1 and saves step 2
  job.steps = 2;
  std::optional<ExitCode> ended;
  try {
    run_ranks(1, [&](Communicator& world) { save_steps(world, job, [](const Message&) {}); });
  } catch (const Error& error) {
    ended = error.code();
  }
  EXPECT_EQ(ended, ExitCode::kTryAgain);
  ASSERT_EQ(newer.committed(), std::vector<int64_t>{kStep});
  int64_t newest = 0;
  EXPECT_EQ(violations(job, newer.committed(), newest), std::vector<std::string>{});
  EXPECT_EQ(newest, kStep);
}

}  // namespace
}  // namespace tessera::faults
