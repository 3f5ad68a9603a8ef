#include "runtime/control/layer_budgets.h"

#include <gtest/gtest.h>

#include "tests/support/compare.h"

namespace tessera {
namespace {

TEST(LayerBudgets, InTheTransitionLayersComeDownTogether) {
  // 64 blocks, at the end 4 of them; in the middle, 16, half of the way in logarithms.
  EXPECT_EQ(kept_with_budget(4, 64, 4, 64), 64);
  EXPECT_EQ(kept_with_budget(4, 16, 4, 64), 32);
  EXPECT_EQ(kept_with_budget(0.25, 16, 4, 64), 8);
  EXPECT_EQ(kept_with_budget(4, 4, 4, 64), 16);
  EXPECT_EQ(kept_with_budget(1, 16, 4, 64), 16);
}

TEST(LayerBudgets, ThereIsAlwaysAChoiceAndNeverMoreThanThereIs) {
  EXPECT_EQ(kept_with_budget(0.25, 4, 4, 64), 2);
  EXPECT_EQ(kept_with_budget(4, 20, 20, 64), 64);
  EXPECT_EQ(kept_with_budget(0.25, 1, 1, 64), 1) << "the configuration wants no choice";
}

TEST(LayerBudgets, BudgetsInForceFollowByWholeBlocks) {
  LayerBudgets budgets({1, 1, 1});
  budgets.want({1.04, 1.06, 0.5});  // of 20 blocks: 20.8, 21.2, 10
  const std::vector<BudgetChange> changes = budgets.follow(20, 100);
  EXPECT_EQ(changes, (std::vector<BudgetChange>{{1, 20, 21}, {2, 20, 10}}));
  EXPECT_EQ(budgets.in_force(), (Budgets{1, 1.06, 0.5}));
  EXPECT_EQ(budgets.wanted(), (Budgets{1.04, 1.06, 0.5}));
  // It is from what is in force that a whole block is asked for.
  budgets.want({1.05, 1.02, 0.5});
  EXPECT_EQ(budgets.follow(20, 100), (std::vector<BudgetChange>{{0, 20, 21}}));
}

TEST(LayerBudgets, KeptBlocksAreEmptyWhereAllKeepTheSame) {
  EXPECT_TRUE(LayerBudgets({1, 1}).kept_blocks(20, 20, 100).empty());
  EXPECT_EQ(LayerBudgets({1, 2}).kept_blocks(20, 20, 100), (std::vector<int64_t>{20, 40}));
  EXPECT_TRUE(LayerBudgets({1, 2}).kept_blocks(100, 20, 100).empty()) << "a dense step";
  support::expect_error([] { LayerBudgets({1, 1}, {1}); }, "2 are wanted and 1 in force");
}

}  // namespace
}  // namespace tessera
