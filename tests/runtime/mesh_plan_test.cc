#include "runtime/train/mesh_plan.h"

#include <gtest/gtest.h>

#include "parallel/mesh.pb.h"
#include "tests/model/tiny_model.h"

namespace tessera {
namespace {

TrainConfig config_on(const MeshShape& shape, std::vector<std::string> more = {}) {
  // Local heads and vocabulary are not even: 10 heads in groups of 2, 61 entries.
  more.insert(more.end(), {"model.heads=12", "model.kv_heads=6", "batch.sequences=12",
                           "batch.micro_sequences=1", "batch.sequence_length=96"});
  TrainConfig config = support::tiny_config(more);
  config.mutable_mesh()->set_data(shape.data);
  config.mutable_mesh()->set_expert(shape.expert);
  config.mutable_mesh()->set_sequence(shape.sequence);
  config.mutable_mesh()->set_tensor(shape.tensor);
  return config;
}

TEST(MeshPlan, TheKindsOfRanksIncludeTheLargestOfAll) {
  const std::vector<std::string> zigzag{"mesh.sequence_order=ZIGZAG"};
  for (const auto& [shape, more] :
       std::vector<std::pair<MeshShape, std::vector<std::string>>>{{{1, 1, 1, 4}, {}},
                                                                   {{2, 1, 1, 8}, {}},
                                                                   {{3, 2, 1, 1}, {}},
                                                                   {{1, 2, 3, 2}, {}},
                                                                   {{1, 1, 6, 4}, {}},
                                                                   {{1, 1, 3, 2}, zigzag},
                                                                   {{1, 4, 2, 4}, zigzag}}) {
    const TrainConfig config = config_on(shape, more);
    MemoryPlan largest;
    for (int rank = 0; rank < shape.ranks(); ++rank) {
      const MemoryPlan plan = plan_memory(config, rank);
      if (plan.total() - plan.optimizer > largest.total() - largest.optimizer) largest = plan;
    }
    const MemoryPlan found = plan_largest_rank(config).memory;
    EXPECT_EQ(found.total() - found.optimizer, largest.total() - largest.optimizer)
        << to_string(shape) << " " << largest.rank << " not " << found.rank;
    // But for the alignment of what is owned, at most 64 bytes of each of 3 parts of a parameter.
    EXPECT_NEAR(static_cast<double>(found.total()), static_cast<double>(largest.total()), 16384.0);
  }
}

TEST(MeshPlan, KindsAreFewHoweverLargeTheMesh) {
  EXPECT_EQ(kinds_of_ranks(config_on({1, 1, 1, 1})), (std::vector<int>{0}));
  EXPECT_EQ(kinds_of_ranks(config_on({12, 1, 1, 1})), (std::vector<int>{0, 11}));
  EXPECT_EQ(kinds_of_ranks(config_on({1, 1, 6, 1})), (std::vector<int>{0, 3, 5}));
  EXPECT_LE(kinds_of_ranks(config_on({6, 2, 3, 8})).size(), 2u * 3 * 6);
}

TEST(MeshPlan, TheFirstAndTheLastStageStandForARun) {
  const auto steps = plan_largest_rank(config_on({1, 1, 2, 1})).steps;
  const auto both = first_and_last(steps);
  ASSERT_EQ(both.size(), 2u);
  EXPECT_EQ(both[0].stage, Stage::kDense);
  EXPECT_EQ(both[1].stage, Stage::kTuning);
  EXPECT_EQ(first_and_last({steps[0]}).size(), 1u);
}

}  // namespace
}  // namespace tessera
