// Training on several ranks that share out the optimizer's state: the same numbers as one rank, the
// same bits in every repetition, and checkpoints that any number of ranks goes on from.

#include <gtest/gtest.h>

#include <fstream>

#include "tests/runtime/training_fixture.h"

namespace tessera {
namespace {

using support::expect_relative;

class ShardedTrainingTest : public support::TrainingFixture {
 protected:
  /// Batches that 1, 2, 3, 4 and 6 ranks can share, one sequence at a time.
  TrainConfig config_of(const std::string& run, std::vector<std::string> more = {}) const {
    more.insert(more.end(), {"batch.sequences=12", "batch.micro_sequences=1"});
    return config(run, more);
  }
};

TEST_F(ShardedTrainingTest, AnyNumberOfRanksTrainsLikeOne) {
  // Adam divides by the root of v: where a gradient is almost 0, rounding decides its direction.
  const std::vector<std::string> few{"steps=4", "optimizer.epsilon=1e-4"};
  run_on(1, config_of("one", few));
  for (const int ranks : {2, 4}) {
    const std::string name = concat("on", ranks);
    run_on(ranks, config_of(name, few));
    expect_relative(metric(name, "loss"), metric("one", "loss"), 2e-5, name + " loss");
    expect_relative(metric(name, "gradient_norm"), metric("one", "gradient_norm"), 2e-5,
                    name + " gradient norm");
    expect_close_state(saved(name, "00000004"), saved("one", "00000004"), 2e-5);
  }
}

TEST_F(ShardedTrainingTest, TheWholeCourseIsThatOfOneRank) {
  run_on(1, config_of("one"));
  run_on(2, config_of("two"));
  expect_relative(metric("two", "loss"), metric("one", "loss"), 1e-3, "loss");
}

TEST_F(ShardedTrainingTest, ARepetitionHasTheSameBits) {
  for (const std::string precision : {"F32", "BF16"}) {
    const std::vector<std::string> more{"runtime.precision=" + precision};
    run_on(2, config_of("first" + precision, more));
    run_on(2, config_of("second" + precision, more));
    EXPECT_EQ(metrics("first" + precision), metrics("second" + precision));
    expect_same_state(saved("first" + precision, "00000012"),
                      saved("second" + precision, "00000012"));
    // So has a run that was cut off and goes on.
    run_on(2, config_of("resumed" + precision, more), from("first" + precision, "00000005"));
    expect_same_state(saved("first" + precision, "00000012"),
                      saved("resumed" + precision, "00000012"));
  }
}

TEST_F(ShardedTrainingTest, AnyNumberOfRanksGoesOn) {
  run_on(2, config_of("two"));
  std::vector<double> rest = metric("two", "loss");
  rest.erase(rest.begin(), rest.begin() + 5);
  for (const int ranks : {1, 3, 4}) {
    const std::string name = concat("on", ranks);
    run_on(ranks, config_of(name), from("two", "00000005"));
    expect_relative(metric(name, "loss"), rest, 1e-3, name);
  }
}

TEST_F(ShardedTrainingTest, ACheckpointIsTheSameStateOnAnyNumberOfRanks) {
  for (const std::string precision : {"F32", "BF16"}) {
    SCOPED_TRACE(precision);
    const TrainConfig two = config_of("two" + precision, {"runtime.precision=" + precision});
    run_on(2, two);
    std::filesystem::path from = saved("two" + precision, "00000010");
    EXPECT_EQ(CheckpointReader(from).facts().mesh,
              (std::vector<MeshAxis>{{"data", 2}, {"expert", 1}, {"sequence", 1}, {"tensor", 1}}));
    for (const int ranks : {1, 3, 4, 2}) {
      const std::string name = concat("copy", precision, ranks);
      copy_on({.data = ranks}, two, from, directory_ / name);
      expect_same_state(from, saved(name, "00000010"));
      from = saved(name, "00000010");
      EXPECT_EQ(CheckpointReader(from).facts().mesh[0], (MeshAxis{"data", ranks}));
    }
  }
}

TEST_F(ShardedTrainingTest, AllRanksFallBackToAnOlderCheckpointTogether) {
  run_on(2, config_of("run"));
  std::filesystem::copy(directory_ / "run", directory_ / "cut",
                        std::filesystem::copy_options::recursive);
  std::filesystem::remove_all(saved("cut", "00000012"));
  {  // the last block of what rank 1 has written
    const auto file = saved("cut", "00000010") / "d/e000001-r00001-0.shard";
    std::fstream shard(file, std::ios::in | std::ios::out | std::ios::binary);
    shard.seekp(static_cast<std::streamoff>(std::filesystem::file_size(file)) - 4096);
    shard.put('\x77');
  }
  run_on(2, config_of("cut"));
  EXPECT_FALSE(std::filesystem::exists(saved("cut", "00000010") / "d/e000001-r00001-0.shard"));
  EXPECT_TRUE(std::filesystem::exists(directory_ / "cut/checkpoints/.bad/step-00000010"));
  expect_same_state(saved("run", "00000012"), saved("cut", "00000012"));
}

}  // namespace
}  // namespace tessera
