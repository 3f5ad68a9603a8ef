#include "checkpoint/shared_save.h"

#include <gtest/gtest.h>

#include <fstream>

#include "checkpoint/compare.h"
#include "checkpoint/verify.h"
#include "parallel/thread_communicator.h"
#include "tests/checkpoint/sample_run.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
using support::quick_options;
using support::SampleState;
using support::TemporaryDirectory;

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

TEST(SharedSave, AnyNumberOfRanksSavesTheSameState) {
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

TEST(SharedSave, SaysWhichRankFailedAndWhyAndTheNextSaveWorks) {
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

TEST(SharedSave, WhatCannotBeginFailsOnAllRanks) {
  const TemporaryDirectory run;
  StoreOptions options = quick_options();
  options.reserve_bytes = int64_t{1} << 60;
  CheckpointStore store(run.path(), options);
  const SaveReport report = save_with(3, 10, store);
  EXPECT_FALSE(report.committed);
  EXPECT_NE(report.failure.find("bytes free, expected"), std::string::npos) << report.failure;
}

// Before the save, and at two moments within it: every rank must stop, with the same exit code.
TEST(SharedSave, ANewerIncarnationStopsAllRanks) {
  for (const std::string moment : {"before", "directory made", "fence checked"}) {
    const TemporaryDirectory run;
    std::optional<CheckpointStore> new_job;
    StoreOptions options = quick_options();
    options.on_stage = [&](const std::string& stage) {
      if (stage == moment && !new_job) new_job.emplace(run.path(), quick_options());
    };
    CheckpointStore old_job(run.path(), options);
    if (moment == "before") new_job.emplace(run.path(), quick_options());
    run_ranks(3, [&](Communicator& world) {
      const SampleState state(10, world.rank(), world.size());
      try {
        (void)save_together(world, world.rank() == 0 ? &old_job : nullptr, state.contents());
        ADD_FAILURE() << "rank " << world.rank() << " goes on after " << moment;
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ExitCode::kTryAgain) << error.what();
      }
    });
    ASSERT_TRUE(new_job);
    EXPECT_TRUE(save_with(3, 10, *new_job).committed);
    verify_checkpoint(CheckpointReader(find_checkpoint(run.path())));
  }
}

// Boxes as an optimizer state has them: ranges of a row-major block, in several boxes.
TEST(SharedSave, ATensorMayBeInSeveralBoxesOfOneRank) {
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

}  // namespace
}  // namespace tessera
