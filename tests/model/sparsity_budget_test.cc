#include "model/sparsity_budget.h"

#include <gtest/gtest.h>

#include "tests/model/tiny_model.h"

namespace tessera {

namespace {

ModelConfig model_of(int32_t block) {
  ModelConfig model = support::tiny_config().model();
  model.set_kv_heads(8);
  model.mutable_attention()->clear_global_groups();
  model.mutable_attention()->set_sparse_ratio(0.9f);
  model.mutable_attention()->set_budget_factor(4);
  model.mutable_attention()->set_kept_blocks(0);
  model.mutable_attention()->set_block(block);
  return model;
}

TEST(SparsityBudget, GrowsWithTheLogarithmOfTheLength) {
  EXPECT_EQ(kept_blocks(model_of(64), 8 << 10), 28);
  EXPECT_EQ(kept_blocks(model_of(64), 32 << 10), 36);
  EXPECT_EQ(kept_blocks(model_of(64), 128 << 10), 44);
  EXPECT_EQ(kept_blocks(model_of(256), 128 << 10), 11);
  EXPECT_EQ(kept_blocks(model_of(512), 128 << 10), 6);
  EXPECT_EQ(kept_blocks(model_of(512), 128), 2);  // never fewer
}

TEST(SparsityBudget, IsOverruledByANumberOfBlocks) {
  ModelConfig model = model_of(64);
  model.mutable_attention()->set_kept_blocks(5);
  EXPECT_EQ(kept_blocks(model, 128 << 10), 5);
}

TEST(SparsityBudget, RoundsTheShareOfGlobalGroups) {
  ModelConfig model = model_of(64);
  EXPECT_EQ(global_groups(model), 1);  // 0.8 of 8
  model.mutable_attention()->set_sparse_ratio(0.8f);
  EXPECT_EQ(global_groups(model), 2);  // 1.6 of 8
  model.mutable_attention()->set_sparse_ratio(0);
  EXPECT_EQ(global_groups(model), 8);
  model.mutable_attention()->set_sparse_ratio(1);
  EXPECT_EQ(global_groups(model), 1);  // at least one
  model.mutable_attention()->set_global_groups(0);
  EXPECT_EQ(global_groups(model), 0);  // unless none is asked for
}

TEST(SparsityBudget, CountsAllBlocksOfASequence) {
  EXPECT_EQ(most_blocks(model_of(64), 128), 2);
  EXPECT_EQ(most_blocks(model_of(64), 129), 3);
  EXPECT_EQ(most_blocks(model_of(64), 1), 1);
}

}  // namespace

}  // namespace tessera
