#include "checkpoint/shared_load.h"

#include <gtest/gtest.h>

#include <atomic>
#include <fstream>

#include "checkpoint/candidates.h"
#include "parallel/thread_communicator.h"
#include "tests/checkpoint/sample_run.h"
#include "tests/checkpoint/save_together.h"

namespace tessera {
namespace {

using support::quick_options;
using support::SampleState;
using support::save_together;
using support::TemporaryDirectory;

/// A run whose step 10 was saved by `ranks` ranks.
void save_by(int ranks, const std::filesystem::path& run, int64_t rows) {
  CheckpointStore store(run, quick_options());
  run_ranks(ranks, [&](Communicator& world) {
    const SampleState state(10, world.rank(), world.size(), rows);
    const bool first = world.rank() == 0;
    EXPECT_TRUE(save_together(world, first ? &store : nullptr, state.contents()).committed);
  });
}

std::vector<TensorGroup> none() {
  return {};
}

TEST(SharedLoad, AnyNumberOfRanksReadsWhatAnyOtherHasSaved) {
  for (const int64_t rows : {37, 25'000}) {  // a part of a block, and several of them
    for (const int writers : {1, 3}) {
      const TemporaryDirectory run;
      save_by(writers, run.path(), rows);
      const CheckpointReader reader(find_checkpoint(run.path()));
      for (const int readers : rows > 1000 ? std::vector{1, 4} : std::vector{1, 2, 5, 8}) {
        std::atomic<int64_t> bytes = 0;
        run_ranks(readers, [&](Communicator& world) {
          Stream stream(Device{}, 1);
          SampleState found(0, world.rank(), world.size(), rows);
          bytes += load_together(world, stream, reader, found.groups(), found.groups());
          EXPECT_EQ(found, SampleState(10, world.rank(), world.size(), rows))
              << "rank " << world.rank() << " of " << readers;
        });
        EXPECT_LE(bytes, reader.bytes()) << "no block is read twice";
      }
    }
  }
}

// What all hold, and what is cut against the grain, costs the file system no more.
TEST(SharedLoad, EveryBlockIsReadOnceWhateverIsReplicated) {
  const TemporaryDirectory run;
  constexpr int64_t kRows = 25'000;
  save_by(2, run.path(), kRows);
  const CheckpointReader reader(find_checkpoint(run.path()));
  std::atomic<int64_t> bytes = 0;
  run_ranks(3, [&](Communicator& world) {
    Stream stream(Device{}, 1);
    SampleState whole(0, 0, 1, kRows);
    const auto owned = world.rank() == 0 ? whole.groups() : none();
    bytes += load_together(world, stream, reader, whole.groups(), owned);
    EXPECT_EQ(whole, SampleState(10, 0, 1, kRows)) << "rank " << world.rank();
  });
  EXPECT_LE(bytes, reader.bytes());
}

TEST(SharedLoad, DamageThatOneRankMeetsIsToldOnAll) {
  const TemporaryDirectory run;
  constexpr int64_t kRows = 25'000;
  save_by(2, run.path(), kRows);
  const std::filesystem::path checkpoint = find_checkpoint(run.path());
  const CheckpointReader reader(checkpoint);
  {
    std::fstream shard(checkpoint / "d/e000001-r00001-0.shard",
                       std::ios::in | std::ios::out | std::ios::binary);
    shard.seekp(4096 + 1'500'000);
    shard.put('\x77');
  }
  run_ranks(3, [&](Communicator& world) {
    Stream stream(Device{}, 1);
    SampleState found(0, world.rank(), world.size(), kRows);
    try {
      (void)load_together(world, stream, reader, found.groups(), found.groups());
      ADD_FAILURE() << "rank " << world.rank() << " has noticed nothing";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadData);
      const std::string text = error.what();
      EXPECT_NE(text.find("e000001-r00001-0.shard is damaged between bytes"), std::string::npos)
          << text;
      EXPECT_NE(text.find("which hold "), std::string::npos) << text;
    }
  });
}

// A tensor that one rank asks for and the checkpoint has not.
TEST(SharedLoad, WhatIsNotThereIsAnErrorOnAllRanks) {
  const TemporaryDirectory run;
  save_by(1, run.path(), 37);
  const CheckpointReader reader(find_checkpoint(run.path()));
  run_ranks(3, [&](Communicator& world) {
    Stream stream(Device{}, 1);
    const support::Tensor extra(DType::kF32, {4});
    const std::vector<NamedTensor> tensors{{"extra", Shard::replicated({4}), extra.view()}};
    const std::vector<TensorGroup> groups{{TensorKind::kParameter, tensors}};
    EXPECT_THROW(
        (void)load_together(world, stream, reader, world.rank() == 1 ? groups : none(), none()),
        Error);
  });
}

// The end-to-end check: what is in memory is not what the digests say.
TEST(SharedLoad, ElementsThatNobodyOwnsAreNoticed) {
  const TemporaryDirectory run;
  save_by(1, run.path(), 37);
  const CheckpointReader reader(find_checkpoint(run.path()));
  run_ranks(2, [&](Communicator& world) {
    Stream stream(Device{}, 1);
    SampleState found(0, world.rank(), world.size());
    const auto owned = world.rank() == 0 ? found.groups() : none();
    try {
      (void)load_together(world, stream, reader, found.groups(), owned);
      ADD_FAILURE() << "half of the elements were not in the sum";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadData);
      EXPECT_NE(std::string(error.what()).find("the digest of parameter embedding as loaded is "),
                std::string::npos)
          << error.what();
    }
  });
}

}  // namespace
}  // namespace tessera
