#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <thread>

#include "checkpoint/verify.h"
#include "kernels/core/random.h"
#include "tests/checkpoint/sample_run.h"

// A process that saves is killed, at every stage and at random moments. What it has acknowledged
// must load, and nothing half-written may ever be taken for a checkpoint.

namespace tessera {
namespace {

using support::quick_options;
using support::SampleState;
using support::TemporaryDirectory;

StoreOptions child_options() {
  StoreOptions options = quick_options();
  options.retention.keep_last = 2;  // so that deletions are interrupted too
  return options;
}

// In the child: goes on from the newest checkpoint, saves step after step and writes each that is
// committed to `acknowledgements`. Never returns.
[[noreturn]] void save_for_ever(const std::filesystem::path& run, int acknowledgements,
                                const StoreOptions& options) {
  try {
    CheckpointStore store(run, options);
    SampleState state(0);
    const std::optional<CheckpointId> from =
        store.restore([&](const CheckpointReader& reader) { reader.read(state.groups()); });
    for (int64_t step = (from ? from->step : 0) + 1;; ++step) {
      const SampleState next(step);
      if (!store.save(next.contents()).committed) _exit(3);
      if (write(acknowledgements, &step, sizeof step) != sizeof step) _exit(4);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "child: %s\n", error.what());
    _exit(5);
  }
}

// The last step that came through the pipe, or `before`.
int64_t last_acknowledged(int pipe_end, int64_t before) {
  int64_t step = before;
  while (read(pipe_end, &step, sizeof step) == sizeof step) {
  }
  return step;
}

enum class LifeBegins { kAtStart, kAfterASave };

// Runs the child until it is killed, after `life` or, if that is 0, by itself; returns the last
// step it has acknowledged so far.
int64_t run_child(const std::filesystem::path& run, const StoreOptions& options,
                  std::chrono::microseconds life, LifeBegins begin, int64_t acknowledged) {
  std::array<int, 2> ends{};
  CHECK(pipe(ends.data()) == 0, "no pipe");
  const pid_t child = fork();
  if (child == 0) {
    close(ends[0]);
    std::freopen("/dev/null", "w", stderr);
    save_for_ever(run, ends[1], options);
  }
  close(ends[1]);
  int64_t first = 0;
  if (begin == LifeBegins::kAfterASave && read(ends[0], &first, sizeof first) == sizeof first) {
    acknowledged = first;
  }
  if (life.count() > 0) {
    std::this_thread::sleep_for(life);
    kill(child, SIGKILL);
  }
  const int64_t last = last_acknowledged(ends[0], acknowledged);
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status)) << "the child ended by itself: " << WEXITSTATUS(status);
  return last;
}

// What a restart finds: at least the last acknowledged step, complete and right.
void expect_intact(const std::filesystem::path& run, int64_t acknowledged) {
  for (const Candidate& candidate : list_checkpoints(run / "checkpoints")) {
    EXPECT_TRUE(candidate.state == CandidateState::kValid ||
                candidate.state == CandidateState::kUncommitted)
        << candidate.path << ": " << candidate.reason;
    if (candidate.state == CandidateState::kValid) {
      verify_checkpoint(CheckpointReader(candidate.path));
    }
  }
  CheckpointStore store(run, quick_options());
  SampleState state(0);
  const std::optional<CheckpointId> id =
      store.restore([&](const CheckpointReader& reader) { reader.read(state.groups()); });
  const int64_t step = id ? id->step : 0;
  EXPECT_GE(step, acknowledged);
  EXPECT_LE(step, acknowledged + 1);
  if (id) {
    EXPECT_EQ(state, SampleState(step));
  }
  EXPECT_TRUE(std::filesystem::is_empty(run / "checkpoints/.trash") ||
              !std::filesystem::exists(run / "checkpoints/.trash"));
}

TEST(Kill, AtEveryStageTheNewestAcknowledgedCheckpointLoads) {
  for (const char* moment :
       {"directory made", "shard header written", "tensor written", "shard written", "shard synced",
        "part written", "part synced", "parts merged", "manifest renamed", "parts removed",
        "fence checked", "marker renamed", "committed", "latest renamed", "before a deletion",
        "trash renamed"}) {
    const TemporaryDirectory run;
    std::filesystem::create_directories(run.path() / "checkpoints/.trash");
    for (const int fatal_visit : {1, 3}) {
      StoreOptions options = child_options();
      options.on_stage = [&, visits = 0](const char* stage) mutable {
        if (std::string(stage) == moment && ++visits == fatal_visit) raise(SIGKILL);
      };
      const int64_t acknowledged =
          run_child(run.path(), options, std::chrono::microseconds(0), LifeBegins::kAtStart, 0);
      SCOPED_TRACE(moment);
      expect_intact(run.path(), acknowledged);
    }
  }
}

TEST(Kill, AtRandomMomentsTheNewestAcknowledgedCheckpointLoads) {
  const TemporaryDirectory run;
  std::filesystem::create_directories(run.path() / "checkpoints/.trash");
  int64_t acknowledged = 0;
  for (uint64_t point = 0; point < 100; ++point) {
    const std::chrono::microseconds life(2000 + philox(11, 0, point)[0] % 25'000);
    // Half of the points are in the start, too, and on a slow day all of these; half are not.
    const LifeBegins begin = point % 2 == 0 ? LifeBegins::kAtStart : LifeBegins::kAfterASave;
    acknowledged = run_child(run.path(), child_options(), life, begin, acknowledged);
    SCOPED_TRACE(point);
    expect_intact(run.path(), acknowledged);
    // The child may have committed one step more than it could say.
    const Candidate newest = list_checkpoints(run.path() / "checkpoints").empty()
                                 ? Candidate{}
                                 : list_checkpoints(run.path() / "checkpoints")[0];
    acknowledged = std::max(acknowledged, newest.id.step);
  }
  EXPECT_GE(acknowledged, 50);
}

}  // namespace
}  // namespace tessera
