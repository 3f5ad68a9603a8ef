#include "runtime/train/expert_load.h"

#include <gtest/gtest.h>

#include "tests/support/random_tensor.h"

namespace tessera {
namespace {

TEST(ExpertLoad, NamesTheWorstLayerAndCountsTheRanks) {
  const std::vector<double> tokens{2, 2, 2, 2, 0, 6, 1, 1, 3, 3, 1, 1};
  const support::Tensor counts = support::from_doubles(DType::kF32, {3, 4}, tokens);
  const ExpertLoad load = expert_load(counts, 2);
  EXPECT_DOUBLE_EQ(load.experts, 3);
  EXPECT_EQ(load.layer, 1);
  EXPECT_EQ(load.expert_tokens, (std::vector<int64_t>{0, 6, 1, 1}));
  EXPECT_EQ(load.layer_tokens,
            (std::vector<std::vector<int64_t>>{{2, 2, 2, 2}, {0, 6, 1, 1}, {3, 3, 1, 1}}));
  EXPECT_DOUBLE_EQ(load.ranks, 1.5);
  EXPECT_EQ(load.rank_tokens, (std::vector<int64_t>{4 + 6 + 6, 4 + 2 + 2}));
}

TEST(ExpertLoad, IsNothingWithoutExpertsOrTokens) {
  EXPECT_EQ(expert_load({}, 1).experts, 0);
  const support::Tensor none =
      support::from_doubles(DType::kF32, {1, 2}, std::vector<double>{0, 0});
  EXPECT_EQ(expert_load(none, 2).experts, 0);
  EXPECT_EQ(expert_load(none, 2).ranks, 0);
}

}  // namespace
}  // namespace tessera
