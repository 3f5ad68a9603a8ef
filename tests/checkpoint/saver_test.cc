#include "checkpoint/saver.h"

#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <thread>

#include "checkpoint/candidates.h"
#include "checkpoint/compare.h"
#include "checkpoint/verify.h"
#include "parallel/thread_communicator.h"
#include "tests/checkpoint/sample_run.h"
#include "tests/checkpoint/save_together.h"
#include "tests/support/compare.h"

// Saves while "training" goes on: steps that only sum up the votes.

namespace tessera {
namespace {

namespace fs = std::filesystem;
using support::quick_options;
using support::SampleState;
using support::save_together;
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
    Stream stream(Device{}, 2);
    for (const int64_t step : {10, 20}) {
      SampleState state(step, world.rank(), world.size());
      EXPECT_FALSE(saver.busy());
      EXPECT_TRUE(saver.start(stream, state.contents()));
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
    Stream stream(Device{}, 1);
    const SampleState state(10, world.rank(), world.size());
    EXPECT_TRUE(saver.start(stream, state.contents()));
    for (int step = 0; step < 100; ++step) {
      EXPECT_FALSE(step_of(world, saver));
      if (step % 50 == 0) {
        EXPECT_FALSE(saver.start(stream, state.contents()));
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
    Stream stream(Device{}, 1);
    for (const bool steps_follow : {true, false}) {
      const int64_t step = steps_follow ? 10 : 20;
      const SampleState state(step, world.rank(), world.size());
      saver.start(stream, state.contents());
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
    Stream stream(Device{}, 1);
    const SampleState state(10, world.rank(), world.size());
    saver.start(stream, state.contents());
    const SaveReport failed = steps_until_saved(world, saver);
    EXPECT_FALSE(failed.committed);
    if (world.rank() == 0) {
      EXPECT_EQ(failed.failure, "rank 2: the disk is on fire");
      EXPECT_TRUE(store.list().empty()) << "its space is given back";
    }
    world.barrier();
    broken = false;
    saver.start(stream, state.contents());
    EXPECT_TRUE(saver.finish()->committed);
    EXPECT_FALSE(saver.finish()) << "nothing is under way";
  });
  expect_saved(run.path() / "checkpoints/step-00000010", 10);
}

TEST(CheckpointSaver, ANewerIncarnationStopsAllRanksAtAStep) {
  for (const std::string moment : {"before", "directory made", "shard written", "fence checked"}) {
    const TemporaryDirectory run;
    std::optional<CheckpointStore> new_job;
    StoreOptions options = quick_options();
    options.on_stage = [&](const std::string& stage) {
      if (stage == moment && !new_job) new_job.emplace(run.path(), quick_options());
    };
    CheckpointStore old_job(run.path(), options);
    if (moment == "before") new_job.emplace(run.path(), quick_options());
    with_savers(3, old_job, {}, [&](Communicator& world, CheckpointSaver& saver) {
      Stream stream(Device{}, 1);
      saver.start(stream, SampleState(10, world.rank(), world.size()).contents());
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
    Stream stream(Device{}, 1);
    SampleState state(10, world.rank(), world.size());
    state.fill(0);
    world.barrier();
    saver.start(stream, state.contents());
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

/// One save of SampleState(step) by `ranks` ranks, each with its own block of every tensor.
SaveReport save_with(int ranks, int64_t step, CheckpointStore& store) {
  SaveReport report;
  run_ranks(ranks, [&](Communicator& world) {
    const bool first = world.rank() == 0;
    const SampleState state(step, world.rank(), world.size());
    const SaveReport mine = save_together(world, first ? &store : nullptr, state.contents());
    if (first) report = mine;
    world.barrier();
    EXPECT_EQ(mine.committed, report.committed) << "on rank " << world.rank();
  });
  return report;
}

TEST(CheckpointSaver, AnyNumberOfRanksSavesTheSameState) {
  const TemporaryDirectory one;
  CheckpointStore alone(one.path(), quick_options());
  const SaveReport expected = alone.save(SampleState(10).contents());
  ASSERT_TRUE(expected.committed) << expected.failure;
  for (const int ranks : {1, 2, 3, 7}) {
    const TemporaryDirectory run;
    CheckpointStore store(run.path(), quick_options());
    const SaveReport report = save_with(ranks, 10, store);
    ASSERT_TRUE(report.committed) << report.failure;
    EXPECT_EQ(report.path, run.path() / "checkpoints/step-00000010");
    const CheckpointReader reader(report.path);
    verify_checkpoint(reader);
    EXPECT_TRUE(compare_checkpoints(reader, CheckpointReader(expected.path)).empty()) << ranks;
    EXPECT_EQ(reader.blob_names(), (std::vector<std::string>{kConfigBlob, "cursor", "empty"}));
    EXPECT_EQ(Directory(report.path / "d").entries().size(), static_cast<size_t>(ranks));
    EXPECT_GE(report.bytes, reader.bytes() - (1 << 16));
    // A step is saved once.
    EXPECT_TRUE(save_with(ranks, 10, store).committed);
    EXPECT_EQ(store.list().size(), 1u);
  }
}

TEST(CheckpointSaver, SaysWhichRankFailedAndWhyAndTheNextSaveWorks) {
  const TemporaryDirectory run;
  StoreOptions options = quick_options();
  bool in_the_way = true;
  options.on_stage = [&](const std::string& stage) {
    if (stage != "directory made" || !in_the_way) return;
    // Rank 2 never writes over a file.
    std::ofstream(run.path() / "checkpoints/step-00000020/d/e000001-r00002-0.shard") << "mine";
  };
  CheckpointStore store(run.path(), options);
  const SaveReport failed = save_with(4, 20, store);
  EXPECT_FALSE(failed.committed);
  EXPECT_TRUE(failed.failure.starts_with("rank 2: ")) << failed.failure;
  EXPECT_NE(failed.failure.find("e000001-r00002-0.shard"), std::string::npos) << failed.failure;
  EXPECT_FALSE(fs::exists(run.path() / "checkpoints/step-00000020")) << "its space is given back";
  in_the_way = false;
  const SaveReport report = save_with(4, 20, store);
  ASSERT_TRUE(report.committed) << report.failure;
  verify_checkpoint(CheckpointReader(report.path));
}

TEST(CheckpointSaver, WhatCannotBeginFailsOnAllRanks) {
  const TemporaryDirectory run;
  StoreOptions options = quick_options();
  options.reserve_bytes = int64_t{1} << 60;
  CheckpointStore store(run.path(), options);
  const SaveReport report = save_with(3, 10, store);
  EXPECT_FALSE(report.committed);
  EXPECT_NE(report.failure.find("bytes free, expected"), std::string::npos) << report.failure;
}

// Boxes as an optimizer state has them: ranges of a row-major block, in several boxes.
TEST(CheckpointSaver, ATensorMayBeInSeveralBoxesOfOneRank) {
  const Shape shape{5, 4, 3};
  const support::Tensor all = support::random_tensor(DType::kF32, shape, 3);
  const TemporaryDirectory run;
  CheckpointStore store(run.path(), quick_options());
  run_ranks(3, [&](Communicator& world) {
    const std::vector<int64_t> cuts{0, 17, 44, 60};
    const auto r = static_cast<size_t>(world.rank());
    std::vector<NamedTensor> mine;
    int64_t at = cuts[r];
    for (const Box& box : boxes_of_range(whole_box(shape), cuts[r], cuts[r + 1])) {
      const int64_t elements = box.extents.elements();
      mine.emplace_back("x", shape, box,
                        all.view().reshape({60}).rows(at, elements).reshape(box.extents));
      at += elements;
    }
    CheckpointContents contents;
    contents.step = 1;
    contents.groups = {{TensorKind::kParameter, mine}};
    const SaveReport report = save_together(world, r == 0 ? &store : nullptr, contents);
    EXPECT_TRUE(report.committed) << report.failure;
    // Every rank reads what another one wrote.
    const support::Tensor copy(DType::kF32, shape);
    const NamedTensor target("x", Shard::replicated(shape), copy);
    const CheckpointReader reader(find_checkpoint(run.path()));
    reader.read(TensorKind::kParameter, {&target, 1});
    support::expect_same_bits(copy, all, "x");
    EXPECT_EQ(reader.tensors().size(), 1u);
  });
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
