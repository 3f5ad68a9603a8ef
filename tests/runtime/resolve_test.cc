#include "runtime/config/resolve.h"

#include <gtest/gtest.h>

#include "runtime/config/text_writer.h"
#include "runtime/config/train.pb.h"

namespace tessera {
namespace {

TrainConfig resolved(TrainConfig config) {
  resolve(config);
  return config;
}

TEST(Resolve, FillsConstants) {
  const TrainConfig config = resolved({});
  EXPECT_EQ(config.optimizer().beta2(), 0.95);
  EXPECT_EQ(config.model().norm_epsilon(), 1e-5f);
  EXPECT_TRUE(config.model().attention().has_gate_trunk_grad());
  EXPECT_TRUE(config.model().attention().gate_trunk_grad());
  EXPECT_TRUE(config.model().has_tie_embeddings());
  EXPECT_EQ(config.seed(), 1u);
  EXPECT_EQ(config.mesh().tensor(), 1);
  EXPECT_EQ(config.mesh().data(), 0);
  EXPECT_EQ(config.checkpoint().keep_last(), 3);
  EXPECT_FALSE(config.runtime().has_peak_tflops());
  EXPECT_FALSE(config.model().has_moe());
}

TEST(Resolve, KeepsWhatWasSet) {
  TrainConfig config;
  config.mutable_optimizer()->set_beta2(0);
  config.mutable_checkpoint()->set_every(0);
  config.mutable_model()->mutable_attention()->set_gate_trunk_grad(false);
  config.set_seed(0);
  config = resolved(config);
  EXPECT_EQ(config.optimizer().beta2(), 0);
  EXPECT_EQ(config.checkpoint().every(), 0);
  EXPECT_FALSE(config.model().attention().gate_trunk_grad());
  EXPECT_EQ(config.seed(), 0u);
}

TEST(Resolve, HeadDimIsHiddenByHeads) {
  TrainConfig config;
  config.mutable_model()->set_hidden(96);
  config.mutable_model()->set_heads(4);
  EXPECT_EQ(resolved(config).model().head_dim(), 24);
  config.mutable_model()->set_head_dim(64);
  EXPECT_EQ(resolved(config).model().head_dim(), 64);
  config.mutable_model()->set_head_dim(0);
  config.mutable_model()->set_heads(5);
  EXPECT_EQ(resolved(config).model().head_dim(), 0);
}

TEST(Resolve, GlobalGroupsFollowTheSparseRatio) {
  const auto groups = [](int kv_heads, float ratio) {
    TrainConfig config;
    config.mutable_model()->set_kv_heads(kv_heads);
    if (ratio >= 0) config.mutable_model()->mutable_attention()->set_sparse_ratio(ratio);
    config = resolved(config);
    EXPECT_FALSE(config.model().attention().has_sparse_ratio());
    return config.model().attention().global_groups();
  };
  EXPECT_EQ(groups(8, -1), 1);   // 0.9: round(0.8)
  EXPECT_EQ(groups(16, -1), 2);  // round(1.6)
  EXPECT_EQ(groups(4, -1), 1);   // at least one
  EXPECT_EQ(groups(8, 0.75f), 2);
  EXPECT_EQ(groups(8, 0), 8);
  EXPECT_EQ(groups(8, 1), 1);
}

TEST(Resolve, StepsOfScheduleAndStages) {
  TrainConfig config;
  config.set_steps(1000);
  TrainConfig never = resolved(config);
  EXPECT_EQ(never.schedule().warmup_steps(), 10);
  EXPECT_EQ(never.schedule().decay_steps(), 0);
  EXPECT_GT(never.sparsity().dense_steps(), 1000);
  EXPECT_EQ(never.sparsity().gate_warmup_steps(), 0);
  EXPECT_EQ(never.sparsity().transition_steps(), 0);
  // A dense run that is made longer stays dense.
  never.set_steps(100000);
  EXPECT_GT(resolved(never).sparsity().dense_steps(), 100000);

  config.mutable_schedule()->set_shape(ScheduleConfig::WSD);
  config.mutable_sparsity()->set_dense_steps(600);
  const TrainConfig sparse = resolved(config);
  EXPECT_EQ(sparse.schedule().decay_steps(), 200);
  EXPECT_EQ(sparse.sparsity().gate_warmup_steps(), 30);
  EXPECT_EQ(sparse.sparsity().transition_steps(), 150);
  config.mutable_sparsity()->set_dense_steps(900);
  EXPECT_EQ(resolved(config).sparsity().transition_steps(), 100);
}

TEST(Resolve, TwiceIsOnce) {
  TrainConfig config;
  config.set_steps(500);
  config.mutable_model()->set_kv_heads(16);
  config.mutable_model()->mutable_moe()->set_experts(4);
  const TrainConfig once = resolved(config);
  EXPECT_EQ(to_text(resolved(once)), to_text(once));
}

TEST(Resolve, SurvivesNonsense) {
  TrainConfig config;
  config.set_steps(std::numeric_limits<int64_t>::min());
  config.mutable_model()->set_hidden(-5);
  config.mutable_model()->set_heads(std::numeric_limits<int32_t>::min());
  config.mutable_model()->set_kv_heads(std::numeric_limits<int32_t>::max());
  config.mutable_model()->mutable_attention()->set_sparse_ratio(
      std::numeric_limits<float>::quiet_NaN());
  config.mutable_sparsity()->set_dense_steps(std::numeric_limits<int64_t>::max());
  resolve(config);
  config.set_steps(std::numeric_limits<int64_t>::max());
  config.mutable_sparsity()->set_dense_steps(std::numeric_limits<int64_t>::min());
  resolve(config);
  EXPECT_EQ(config.optimizer().beta1(), 0.9);
}

}  // namespace
}  // namespace tessera
