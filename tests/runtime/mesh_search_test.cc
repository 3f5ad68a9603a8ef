#include "runtime/train/mesh_search.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/train/mesh_plan.h"
#include "tests/model/tiny_model.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

TrainConfig eight_sequences(std::vector<std::string> more = {}) {
  more.insert(more.end(), {"batch.sequences=8", "batch.micro_sequences=1"});
  return support::tiny_config(more);
}

TEST(MeshSearch, FindsEveryMeshThatTheModelAllows) {
  // 2 local heads, 4 experts, 8 sequences of 112 tokens = 7 blocks.
  const MeshSearch search = search_meshes(eight_sequences(), 4, find_hardware("h100"), 100);
  std::vector<std::string> shapes;
  for (const MeshChoice& choice : search.best) shapes.push_back(to_string(choice.shape));
  std::sort(shapes.begin(), shapes.end());
  EXPECT_EQ(
      shapes,
      (std::vector<std::string>{
          "data 1 x expert 1 x sequence 2 x tensor 2", "data 1 x expert 1 x sequence 4 x tensor 1",
          "data 1 x expert 2 x sequence 1 x tensor 2", "data 1 x expert 2 x sequence 2 x tensor 1",
          "data 1 x expert 4 x sequence 1 x tensor 1", "data 2 x expert 1 x sequence 1 x tensor 2",
          "data 2 x expert 1 x sequence 2 x tensor 1", "data 2 x expert 2 x sequence 1 x tensor 1",
          "data 4 x expert 1 x sequence 1 x tensor 1"}));
  EXPECT_EQ(search.feasible, 9);
}

TEST(MeshSearch, TheFastestThatFitComeFirst) {
  const MeshSearch search = search_meshes(eight_sequences(), 8, find_hardware("a100"), 4);
  ASSERT_EQ(search.best.size(), 4u);
  for (size_t i = 0; i < search.best.size(); ++i) {
    const MeshChoice& choice = search.best[i];
    EXPECT_TRUE(choice.fits);
    EXPECT_GT(choice.compute, 0);
    EXPECT_GT(choice.exchange, 0);
    EXPECT_GE(choice.seconds(), search.best[i == 0 ? 0 : i - 1].seconds());
  }
}

TEST(MeshSearch, MarksWhatDoesNotFit) {
  Hardware small = find_hardware("h100");
  small.memory = 1e5;
  for (const MeshChoice& choice : search_meshes(eight_sequences(), 4, small, 9).best) {
    EXPECT_FALSE(choice.fits);
  }
  // Between the least and the most: those that fit come first, however slow they are.
  const MeshSearch all = search_meshes(eight_sequences(), 4, find_hardware("h100"), 9);
  int64_t least = all.best[0].largest.memory.total();
  int64_t most = least;
  for (const MeshChoice& choice : all.best) {
    least = std::min(least, choice.largest.memory.total());
    most = std::max(most, choice.largest.memory.total());
  }
  small.memory = static_cast<double>(least + most) / 2 / kUsableMemory;
  const MeshSearch some = search_meshes(eight_sequences(), 4, small, 9);
  EXPECT_TRUE(some.best.front().fits);
  EXPECT_FALSE(some.best.back().fits);
  EXPECT_TRUE(std::is_partitioned(some.best.begin(), some.best.end(),
                                  [](const MeshChoice& choice) { return choice.fits; }));
}

TEST(MeshSearch, NetworkLinksCostMoreThanThoseOfANode) {
  const auto exchange = [](const MeshShape& shape, int ranks) {
    Hardware hardware = find_hardware("h100");
    hardware.node_link = 1e30;
    for (const MeshChoice& choice : search_meshes(eight_sequences(), ranks, hardware, 100).best) {
      if (choice.shape == shape) return choice.exchange;
    }
    return -1.0;
  };
  EXPECT_LT(exchange({1, 4, 1, 2}, 8), 1e-15);  // one node
  EXPECT_GT(exchange({2, 4, 1, 2}, 16), 1e-7);
}

TEST(MeshSearch, TensorRanksShareANodeOfAnySize) {
  Hardware hardware = find_hardware("h100");
  hardware.node_ranks = 1;
  for (const MeshChoice& choice : search_meshes(eight_sequences(), 4, hardware, 9).best) {
    EXPECT_EQ(choice.shape.tensor, 1);
  }
  hardware.node_ranks = 2;
  const auto& pairs = search_meshes(eight_sequences(), 4, hardware, 9).best;
  EXPECT_TRUE(std::any_of(pairs.begin(), pairs.end(),
                          [](const MeshChoice& choice) { return choice.shape.tensor == 2; }));
}

TEST(MeshSearch, FindsTheMostRanksThatHaveAMesh) {
  const Hardware& hardware = find_hardware("h100");
  EXPECT_EQ(most_feasible_ranks(eight_sequences(), 8, hardware), 8);
  EXPECT_EQ(most_feasible_ranks(eight_sequences(), 13, hardware), 8);
  EXPECT_EQ(most_feasible_ranks(eight_sequences(), 0, hardware), 0);
}

TEST(MeshSearch, RefusesWithTheNearestNumbers) {
  support::expect_error(
      [] { search_meshes(eight_sequences(), 11, find_hardware("h100"), 1); },
      "no mesh of 11 ranks divides this model and its batch of 8 sequences; the nearest numbers of "
      "ranks are 8 or 14");
  support::expect_error([] { find_hardware("h10"); },
                        "--hardware is \"h10\"; did you mean \"h100\"?");
}

TEST(MeshSearch, PlansAJobOf384Ranks) {
  const TrainConfig config = load_train_config(SOURCE_ROOT "/configs/moe-100b-384gpu.textproto");
  const MeshSearch search = search_meshes(config, 384, find_hardware("h200"), 3);
  EXPECT_TRUE(search.best.front().fits);
  EXPECT_GT(search.feasible, 100);
}

}  // namespace
}  // namespace tessera
