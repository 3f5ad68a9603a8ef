#include "runtime/config/batch_schedule.h"

#include <gtest/gtest.h>

#include "runtime/config/config.h"
#include "runtime/config/train.pb.h"

namespace tessera {
namespace {

TrainConfig tiny(const std::vector<std::string>& overrides) {
  return load_train_config(SOURCE_ROOT "/configs/tiny.textproto", overrides);
}

const std::string kLengths =
    "curriculum.sequence_length=[{value: 16}, {step: 5 value: 32}, {share: 0.5 value: 64}]";

TEST(BatchSchedule, LengthsKeepTokensOrSequences) {
  const TrainConfig tokens = tiny({kLengths});
  const TrainConfig sequences = tiny({kLengths, "curriculum.keep=SEQUENCES"});
  for (int64_t step = 1; step <= 20; ++step) {
    const int64_t length = step < 5 ? 16 : step < 11 ? 32 : 64;
    EXPECT_EQ(batch_size_at(tokens, step), (BatchSize{8 * 64 / length, length})) << step;
    EXPECT_EQ(batch_size_at(sequences, step), (BatchSize{8, length})) << step;
  }
  EXPECT_EQ(batch_changes(tokens), (std::vector<int64_t>{1, 5, 11}));
}

TEST(BatchSchedule, TheRampCountsSequencesAtFullLength) {
  const TrainConfig config =
      tiny({kLengths, "curriculum.sequences=[{value: 2}, {step: 3 value: 4}, {step: 5 value: 8}]"});
  EXPECT_EQ(batch_size_at(config, 1), (BatchSize{8, 16}));
  EXPECT_EQ(batch_size_at(config, 3), (BatchSize{16, 16}));
  EXPECT_EQ(batch_size_at(config, 5), (BatchSize{16, 32}));
  EXPECT_EQ(batch_size_at(config, 11), (BatchSize{8, 64}));
  EXPECT_EQ(batch_changes(config), (std::vector<int64_t>{1, 3, 5, 11}));
  // Without a curriculum nothing changes.
  EXPECT_EQ(batch_changes(tiny({})), (std::vector<int64_t>{1}));
  EXPECT_EQ(batch_size_at(tiny({}), 7), (BatchSize{8, 64}));
}

TEST(BatchSchedule, StepsOfTokensIsTheLeastThatSuffices) {
  const TrainConfig config =
      tiny({"curriculum.sequences=[{value: 2}, {step: 3 value: 4}, {step: 6 value: 8}]"});
  const auto tokens_of = [&](int64_t first, int64_t steps) {
    int64_t sum = 0;
    for (int64_t i = 0; i < steps; ++i) sum += batch_size_at(config, first + i).tokens();
    return sum;
  };
  for (int64_t first = 1; first <= 8; ++first) {
    for (int64_t tokens = 0; tokens <= 4000; tokens += 37) {
      const int64_t steps = steps_of_tokens(config, first, tokens);
      EXPECT_GE(tokens_of(first, steps), tokens);
      if (steps > 0) {
        EXPECT_LT(tokens_of(first, steps - 1), tokens);
      }
    }
  }
  for (int64_t last = 1; last <= 10; ++last) {
    for (int64_t tokens = 0; tokens <= 4000; tokens += 37) {
      const int64_t steps = last_steps_of_tokens(config, last, tokens);
      EXPECT_LE(steps, last);
      if (steps < last) {
        EXPECT_GE(tokens_of(last - steps + 1, steps), tokens);
      }
      if (steps > 0) {
        EXPECT_LT(tokens_of(last - steps + 2, steps - 1), tokens);
      }
    }
  }
  EXPECT_EQ(steps_of_tokens(config, 1, 1), 1);
  EXPECT_GT(steps_of_tokens(config, 1, int64_t{1} << 59), int64_t{1} << 49);
}

TEST(BatchSchedule, MicroBatchesHaveAsManyTokensOrFewer) {
  const TrainConfig config = tiny({kLengths, "batch.micro_sequences=2"});
  EXPECT_EQ(micro_sequences_of(config, {32, 16}, 2), 8);
  EXPECT_EQ(micro_sequences_of(config, {8, 64}, 2), 2);
  EXPECT_EQ(micro_sequences_of(config, {2, 64}, 2), 1);  // no more than there are
  const TrainConfig sequences =
      tiny({kLengths, "batch.micro_sequences=2", "curriculum.keep=SEQUENCES"});
  EXPECT_EQ(micro_sequences_of(sequences, {8, 16}, 2), 2);
}

TEST(BatchSchedule, WeightsMoveOnStraightLinesAndPoolsInSteps) {
  const TrainConfig config =
      tiny({"curriculum.sources={name: \"a\" path: \"b\" "
            "weight: [{step: 5 value: 0.1}, {step: 9 value: 0.3}, {step: 10 value: 0}]}",
            "curriculum.difficulty=[{value: 0.2}, {step: 4 value: 0.6}, {share: 0.5 value: 1}]",
            "curriculum.scores=\"s\""});
  const auto& weight = config.curriculum().sources(0).weight();
  EXPECT_EQ(weight_at(weight, 1), 0.1);
  EXPECT_EQ(weight_at(weight, 5), 0.1);
  EXPECT_NEAR(weight_at(weight, 6), 0.15, 1e-12);
  EXPECT_NEAR(weight_at(weight, 9), 0.3, 1e-12);
  EXPECT_EQ(weight_at(weight, 10), 0);
  EXPECT_EQ(weight_at(weight, 1000), 0);
  EXPECT_EQ(pool_at(config, 1), 0.2);
  EXPECT_EQ(pool_at(config, 4), 0.6);
  EXPECT_EQ(pool_at(config, 10), 0.6);
  EXPECT_EQ(pool_at(config, 11), 1);
  EXPECT_EQ(pool_at(tiny({}), 3), 1);
}

TEST(Stages, MayBeGivenInTokens) {
  // 512 tokens a step.
  const std::vector<std::string> none{"sparsity={}"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), none.begin(), none.end());
    return tiny(more).sparsity();
  };
  const SparsityConfig sparsity =
      with({"sparsity.dense_tokens=4096", "sparsity.gate_warmup_tokens=1025",
            "sparsity.transition_tokens=2049"});
  EXPECT_EQ(sparsity.dense_steps(), 8);
  EXPECT_EQ(sparsity.gate_warmup_steps(), 3);
  EXPECT_EQ(sparsity.transition_steps(), 5);
  EXPECT_EQ(sparsity.guard_limit(), 5);
  EXPECT_FALSE(sparsity.has_dense_tokens());
  // With a ramp: steps of 128, 128, then 512 tokens.
  const SparsityConfig ramp =
      with({"curriculum.sequences=[{value: 2}, {step: 3 value: 8}]", "sparsity.dense_tokens=300",
            "sparsity.gate_warmup_tokens=600"});
  EXPECT_EQ(ramp.dense_steps(), 3);
  EXPECT_EQ(ramp.gate_warmup_steps(), 2);
}

TEST(Stages, MayBeginAnywhere) {
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), "sparsity={}");
    return tiny(more).sparsity();
  };
  const SparsityConfig warmup =
      with({"sparsity.start=GATE_WARMUP", "sparsity.gate_warmup_steps=4"});
  EXPECT_EQ(warmup.dense_steps(), 4);
  EXPECT_EQ(warmup.transition_steps(), 1);
  const SparsityConfig transition =
      with({"sparsity.start=TRANSITION", "sparsity.transition_tokens=3000"});
  EXPECT_EQ(transition.dense_steps(), 0);
  EXPECT_EQ(transition.gate_warmup_steps(), 0);
  EXPECT_EQ(transition.transition_steps(), 6);
  const SparsityConfig tuning = with({"sparsity.start=TUNING"});
  EXPECT_EQ(tuning.dense_steps(), 0);
  EXPECT_EQ(tuning.transition_steps(), 0);
}

}  // namespace
}  // namespace tessera
