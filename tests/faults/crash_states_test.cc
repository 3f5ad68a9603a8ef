#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <set>

#include "kernels/core/log.h"
#include "parallel/thread_communicator.h"
#include "tests/checkpoint/sample_run.h"
#include "tests/faults/campaign.h"
#include "tests/faults/run_check.h"
#include "tests/faults/silence.h"
#include "tests/faults/storage_record.h"

// A file system owes us only what was synced. All changes of a run of four ranks are recorded, and
// at every change a crash is imagined that leaves what was synced, and of the rest nothing, all, or
// any part. What a restart finds in each of these states: run_check.h.

namespace tessera::faults {
namespace {

using support::TemporaryDirectory;
using Changes = std::vector<Change>;

struct Recording {
  SaveJob job;
  ino_t root = 0;
  Changes changes;
};

// Two starts of two saves each, by four ranks and then by two. keep_last 1: every save but the
// first deletes the one before.
Recording record(const TemporaryDirectory& place) {
  Recording recording;
  recording.job = {.run = place.path(), .keep_last = 1, .rows = 9, .steps = 2, .faults = {}};
  struct stat status {};
  CHECK(stat(place.path().c_str(), &status) == 0, "no ", place.path());
  recording.root = status.st_ino;
  const Silence silence;
  StorageRecord calls;
  for (const int ranks : {4, 2}) {
    run_ranks(ranks, [&](Communicator& world) {
      save_steps(world, recording.job, [&](const Message& message) {
        if (message.event == Event::kCommitted) calls.acknowledge(message.step);
      });
    });
  }
  recording.changes = calls.changes();
  return recording;
}

struct Tally {
  std::set<size_t> states;
  int64_t violations = 0;
  std::string first;
};

// Checks one imagined crash, unless it is the same as one before.
void check(const Recording& recording, const Changes& changes, size_t end,
           CrashState::Unsynced unsynced, std::mt19937_64& random, Tally& tally) {
  const CrashState state(changes, end, recording.root, unsynced, random);
  std::vector<int64_t> acknowledged;
  for (size_t i = 0; i < end; ++i) {
    if (changes[i].kind == Change::Kind::kMessage) acknowledged.push_back(changes[i].acknowledged);
  }
  if (!tally.states.insert(state.identity() + acknowledged.size()).second) return;
  const TemporaryDirectory place;
  state.write_to(place.path());
  SaveJob job = recording.job;
  job.run = place.path();
  int64_t newest = 0;
  const std::vector<std::string> wrong = violations(job, acknowledged, newest);
  if (wrong.empty()) return;
  ++tally.violations;
  if (tally.first.empty()) tally.first = concat("after change ", end, ": ", wrong.front());
}

constexpr int64_t kRandomStates = 6;  // of every change

enum class Stop { kNever, kAtAViolation };

Tally check_all(const Recording& recording, const Changes& changes, int64_t random_states,
                uint64_t seed, Stop stop) {
  Tally tally;
  std::mt19937_64 random = random_of(seed);
  for (size_t end = 0; end <= changes.size(); ++end) {
    if (stop == Stop::kAtAViolation && tally.violations > 0) break;
    using Unsynced = CrashState::Unsynced;
    check(recording, changes, end, Unsynced::kLost, random, tally);
    check(recording, changes, end, Unsynced::kKept, random, tally);
    for (int64_t i = 0; i < random_states; ++i) {
      check(recording, changes, end, Unsynced::kRandom, random, tally);
    }
  }
  return tally;
}

TEST(CrashStates, NoneOfThemLosesWhatWasAcknowledged) {
  Campaign campaign("crash states");
  const TemporaryDirectory place;
  const Recording recording = record(place);
  const Tally tally =
      check_all(recording, recording.changes, points_of(kRandomStates), 4, Stop::kNever);
  campaign.points(std::ssize(tally.states), tally.violations);
  campaign.note(concat("of ", recording.changes.size(), " changes"));
  EXPECT_EQ(tally.violations, 0) << tally.first;
  EXPECT_GT(tally.states.size(), 2000u);
}

// The proof that the test would see it: without any of these syncs, something is lost.
TEST(CrashStates, WithoutAnyKindOfSyncSomethingIsLost) {
  const TemporaryDirectory place;
  const Recording recording = record(place);
  std::set<ino_t> directories{recording.root};
  std::map<ino_t, std::string> names{{recording.root, "run"}};
  for (const Change& change : recording.changes) {
    if (change.kind == Change::Kind::kAddEntry) names[change.file] = change.name;
    if (change.is_directory) directories.insert(change.file);
  }
  const auto without = [&](auto is_dropped) {
    Changes changes;
    for (const Change& change : recording.changes) {
      if (change.kind == Change::Kind::kSync && is_dropped(change.file)) continue;
      changes.push_back(change);
    }
    EXPECT_LT(changes.size(), recording.changes.size());
    return check_all(recording, changes, 1, 5, Stop::kAtAViolation).violations;
  };
  EXPECT_GT(without([&](ino_t file) { return names[file].ends_with(".shard"); }), 0);
  EXPECT_GT(without([&](ino_t file) { return names[file] == "MANIFEST.pb.tmp"; }), 0);
  EXPECT_GT(without([&](ino_t file) { return names[file] == "COMMITTED.tmp"; }), 0);
  EXPECT_GT(without([&](ino_t file) { return names[file] == "d"; }), 0);
  EXPECT_GT(without([&](ino_t file) { return names[file] == "checkpoints"; }), 0);
  EXPECT_GT(without([&](ino_t file) { return names[file].starts_with(".new-"); }), 0);
  EXPECT_GT(without([&](ino_t file) { return directories.contains(file); }), 0);
}

}  // namespace
}  // namespace tessera::faults
