#include "checkpoint/saver.h"

#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <thread>

#include "checkpoint/verify.h"
#include "parallel/thread_communicator.h"
#include "tests/checkpoint/sample_run.h"

// Saves while "training" goes on: steps that only sum up the votes.

namespace tessera {
namespace {

namespace fs = std::filesystem;
using support::quick_options;
using support::SampleState;
using support::TemporaryDirectory;

/// One step boundary.
std::optional<SaveReport> step_of(Communicator& world, CheckpointSaver& saver) {
  SaveVotes votes = saver.votes();
  world.all_reduce_values(votes);
  return saver.advance(votes);
}

SaveReport steps_until_saved(Communicator& world, CheckpointSaver& saver) {
  while (true) {
    if (std::optional<SaveReport> report = step_of(world, saver)) return *report;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

/// `body` on `ranks` ranks, each with a saver in one run directory; rank 0 has `store`.
void with_savers(int ranks, CheckpointStore& store, const StageObserver& on_stage,
                 const std::function<void(Communicator&, CheckpointSaver&)>& body) {
  run_ranks(ranks, [&](Communicator& world) {
    CheckpointSaver saver(world, world.rank() == 0 ? &store : nullptr, {.on_stage = on_stage});
    body(world, saver);
  });
}

void expect_saved(const fs::path& checkpoint, int64_t step) {
  const CheckpointReader reader(checkpoint);
  verify_checkpoint(reader);
  SampleState found(0);
  reader.read(found.groups());
  EXPECT_EQ(found, SampleState(step));
}

TEST(CheckpointSaver, SavesTheStateOfItsBeginWhileTheStateChanges) {
  const TemporaryDirectory run;
  CheckpointStore store(run.path(), quick_options());
  with_savers(3, store, {}, [&](Communicator& world, CheckpointSaver& saver) {
    ThreadPool threads(2);
    for (const int64_t step : {10, 20}) {
      SampleState state(step, world.rank(), world.size());
      EXPECT_FALSE(saver.busy());
      EXPECT_TRUE(saver.start(threads, state.contents()));
      EXPECT_TRUE(saver.busy());
      EXPECT_EQ(saver.step(), step);
      state.fill(0x5A);
      const SaveReport report = steps_until_saved(world, saver);
      EXPECT_TRUE(report.committed) << report.failure;
      EXPECT_FALSE(saver.busy());
      if (world.rank() != 0) continue;
      EXPECT_EQ(report.path,
                run.path() / "checkpoints" / (step == 10 ? "step-00000010" : "step-00000020"));
      EXPECT_GT(report.bytes, 0);
      EXPECT_GT(report.write_seconds, 0);
      EXPECT_GE(report.seconds, report.write_seconds);
      expect_saved(report.path, step);
      EXPECT_FALSE(CheckpointReader(report.path).facts().next_step_digest);
    }
  });
}

// The thread of rank 1 stands still in the middle of its part: every step goes on, further saves
// are skipped and counted, and the votes alone tell when it is done.
TEST(CheckpointSaver, SlowStorageStopsNoStep) {
  const TemporaryDirectory run;
  CheckpointStore store(run.path(), quick_options());
  std::atomic<bool> slow = true;
  run_ranks(2, [&](Communicator& world) {
    StageObserver on_stage = [&](const std::string& stage) {
      while (world.rank() == 1 && stage == "shard written" && slow.load())
        std::this_thread::yield();
    };
    CheckpointSaver saver(world, world.rank() == 0 ? &store : nullptr, {.on_stage = on_stage});
    ThreadPool threads(1);
    const SampleState state(10, world.rank(), world.size());
    EXPECT_TRUE(saver.start(threads, state.contents()));
    for (int step = 0; step < 100; ++step) {
      EXPECT_FALSE(step_of(world, saver));
      if (step % 50 == 0) {
        EXPECT_FALSE(saver.start(threads, state.contents()));
      }
    }
    EXPECT_EQ(saver.step(), 10);
    EXPECT_EQ(saver.skipped(), 2);
    world.barrier();
    slow = false;
    const SaveReport report = steps_until_saved(world, saver);
    EXPECT_TRUE(report.committed) << report.failure;
    EXPECT_EQ(report.skipped, 2);
  });
  expect_saved(run.path() / "checkpoints/step-00000010", 10);
}

TEST(CheckpointSaver, TheDigestOfTheNextStepIsSummedAndKept) {
  const TemporaryDirectory run;
  CheckpointStore store(run.path(), quick_options());
  constexpr uint64_t kShare = 0xFEDC'BA98'7654'3210;
  with_savers(4, store, {}, [&](Communicator& world, CheckpointSaver& saver) {
    ThreadPool threads(1);
    for (const bool steps_follow : {true, false}) {
      const int64_t step = steps_follow ? 10 : 20;
      const SampleState state(step, world.rank(), world.size());
      saver.start(threads, state.contents());
      EXPECT_FALSE(step_of(world, saver));
      saver.set_next_step_digest(kShare + static_cast<uint64_t>(world.rank()));
      const SaveReport report = steps_follow ? steps_until_saved(world, saver) : *saver.finish();
      if (world.rank() != 0) continue;
      const auto digest = CheckpointReader(report.path).facts().next_step_digest;
      ASSERT_TRUE(digest);
      EXPECT_EQ(*digest, 4 * kShare + 6);  // mod 2^64
    }
  });
}

TEST(CheckpointSaver, AFailureIsToldAndTheNextSaveWorks) {
  const TemporaryDirectory run;
  CheckpointStore store(run.path(), quick_options());
  std::atomic<bool> broken = true;
  run_ranks(3, [&](Communicator& world) {
    StageObserver on_stage = [&](const std::string& stage) {
      if (world.rank() == 2 && stage == "shard written" && broken.load()) {
        throw Error(ExitCode::kTryAgain, "the disk is on fire");
      }
    };
    CheckpointSaver saver(world, world.rank() == 0 ? &store : nullptr, {.on_stage = on_stage});
    ThreadPool threads(1);
    const SampleState state(10, world.rank(), world.size());
    saver.start(threads, state.contents());
    const SaveReport failed = steps_until_saved(world, saver);
    EXPECT_FALSE(failed.committed);
    if (world.rank() == 0) {
      EXPECT_EQ(failed.failure, "rank 2: the disk is on fire");
      EXPECT_TRUE(store.list().empty()) << "its space is given back";
    }
    world.barrier();
    broken = false;
    saver.start(threads, state.contents());
    EXPECT_TRUE(saver.finish()->committed);
    EXPECT_FALSE(saver.finish()) << "nothing is under way";
  });
  expect_saved(run.path() / "checkpoints/step-00000010", 10);
}

TEST(CheckpointSaver, ANewerIncarnationStopsAllRanksAtAStep) {
  for (const std::string moment : {"directory made", "shard written", "fence checked"}) {
    const TemporaryDirectory run;
    std::optional<CheckpointStore> new_job;
    StoreOptions options = quick_options();
    options.on_stage = [&](const std::string& stage) {
      if (stage == moment && !new_job) new_job.emplace(run.path(), quick_options());
    };
    CheckpointStore old_job(run.path(), options);
    with_savers(3, old_job, {}, [&](Communicator& world, CheckpointSaver& saver) {
      ThreadPool threads(1);
      saver.start(threads, SampleState(10, world.rank(), world.size()).contents());
      try {
        (void)steps_until_saved(world, saver);
        ADD_FAILURE() << "rank " << world.rank() << " goes on after " << moment;
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::kTryAgain) << error.what();
      }
    });
    ASSERT_TRUE(new_job);
    EXPECT_TRUE(new_job->save(SampleState(10).contents()).committed);
  }
}

TEST(CheckpointSaver, WithoutBackgroundNothingIsCopied) {
  const TemporaryDirectory run;
  CheckpointStore store(run.path(), quick_options());
  run_ranks(2, [&](Communicator& world) {
    CheckpointSaver saver(world, world.rank() == 0 ? &store : nullptr, {.background = false});
    ThreadPool threads(1);
    SampleState state(10, world.rank(), world.size());
    state.fill(0);
    world.barrier();
    saver.start(threads, state.contents());
    // Rank 0's thread has only made a directory yet: parts are written within finish().
    state.fill(1);
    EXPECT_TRUE(saver.finish()->committed);
  });
  SampleState ones(10);
  ones.fill(1);
  SampleState found(10);
  CheckpointReader(run.path() / "checkpoints/step-00000010").read(found.groups());
  EXPECT_EQ(found, ones);
}

TEST(CheckpointSaver, SaysWhenAWeightIsNotFinite) {
  const TemporaryDirectory run;
  CheckpointStore store(run.path(), quick_options());
  EXPECT_TRUE(store.save(SampleState(10).contents()).committed);
  SampleState wrong(20);
  wrong.fill(0xFF);  // NaN in bf16 and f32
  EXPECT_TRUE(store.save(wrong.contents()).committed);
  EXPECT_TRUE(CheckpointReader(run.path() / "checkpoints/step-00000010").facts().finite);
  EXPECT_FALSE(CheckpointReader(run.path() / "checkpoints/step-00000020").facts().finite);
}

TEST(CheckpointSaver, RankZeroAloneHasTheStore) {
  const TemporaryDirectory run;
  CheckpointStore store(run.path(), quick_options());
  run_ranks(2, [&](Communicator& world) {
    EXPECT_THROW(CheckpointSaver(world, world.rank() == 1 ? &store : nullptr, {}), Error);
  });
}

}  // namespace
}  // namespace tessera
