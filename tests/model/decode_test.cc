#include <gtest/gtest.h>

#include "kernels/core/copy.h"
#include "tests/model/tiny_model.h"
#include "tests/support/compare.h"

// Decoding one token at a time gives what the training forward gives at that position.

namespace tessera {

namespace {

using support::tiny_config;
using support::tiny_plan;
using support::TinyBatch;
using support::TinyModel;

/// Three copies of a sequence, each behind the one before by some tokens and the last one begun
/// where another sequence was: all rows must be what training gives at their positions.
void expect_decoding_equals_training(const TrainConfig& config, const SparsityPlan& plan,
                                     double tolerance,
                                     std::span<const int64_t> kept_of_layers = {}) {
  TinyModel tiny(config);
  TinyBatch batch(config, 5);
  const int64_t length = config.batch().sequence_length();
  batch.starts = {0, static_cast<int32_t>(length)};
  batch.sequences = 1;
  batch.tokens.resize(static_cast<size_t>(length));
  batch.targets.resize(static_cast<size_t>(length));
  const int64_t vocabulary = config.model().vocabulary();
  const std::vector<int64_t> behind =
      support::takes_less() ? std::vector<int64_t>{0, 5} : std::vector<int64_t>{0, 5, 37};
  const auto sequences = std::ssize(behind);
  Buffer buffer(support::bare_device(), (length + sequences) * vocabulary * 4);
  const TensorView expected = buffer.view(DType::kF32, {length, vocabulary});
  const TensorView found =
      buffer.view(DType::kF32, {sequences, vocabulary}, length * vocabulary * 4);
  Transformer::Run run = tiny.run(plan);
  run.kept_of_layers = kept_of_layers;
  tiny.model.logits(run, batch.view(), expected);
  std::vector<AttentionCache> caches =
      tiny.model.make_caches(tiny.stream, plan, {.sequences = sequences, .tokens = length});
  const int64_t smear = tiny.model.smear_tokens();
  std::vector<double> all_found, all_expected;
  for (int64_t step = 0; step < length; ++step) {
    std::vector<int32_t> positions, ids;
    for (const int64_t late : behind) {
      // Before its time a sequence is another one, of the tokens from the end on.
      const bool begun = step >= late;
      const int64_t position = begun ? step - late : step;
      positions.push_back(static_cast<int32_t>(position));
      for (int64_t j = 0; j <= smear; ++j) {
        const int64_t from = begun ? position - j : length - 1 - (position - j);
        ids.push_back(j <= position ? batch.tokens[static_cast<size_t>(from)] : -1);
      }
    }
    const DecodeInput input{host_view(ids).reshape({sequences, smear + 1}), positions};
    tiny.model.decode(run, input, caches, found);
    for (int64_t s = 0; s < sequences; ++s) {
      const int64_t position = step - behind[static_cast<size_t>(s)];
      if (position < 0) continue;
      const auto row = support::to_doubles(found.rows(s, 1));
      const auto trained = support::to_doubles(expected.rows(position, 1));
      if (config.runtime().precision() == RuntimeConfig::F32) {
        support::expect_close(row, trained, tolerance,
                              concat("sequence ", s, " position ", position));
      }
      all_found.insert(all_found.end(), row.begin(), row.end());
      all_expected.insert(all_expected.end(), trained.begin(), trained.end());
    }
  }
  support::expect_close(all_found, all_expected, tolerance, "all positions");
}

TEST(Decode, EqualsTrainingAtEveryPositionOfASparseModel) {
  for (const char* keys : {"1", "2"}) {
    const TrainConfig config = tiny_config({concat("model.attention.gate_keys=", keys)});
    SparsityPlan plan = tiny_plan();
    expect_decoding_equals_training(config, plan, 1e-10);
    plan.kept = 3;
    plan.strength = 1 - 0x1p-10f;
    expect_decoding_equals_training(config, plan, 1e-10);
  }
}

TEST(Decode, EqualsTrainingWhereLayersKeepOtherNumbersOfBlocks) {
  if (support::takes_less()) GTEST_SKIP() << "the same kernels as above";
  const std::vector<int64_t> kept{3, 1};
  expect_decoding_equals_training(tiny_config({"model.attention.gate_keys=1"}), tiny_plan(), 1e-10,
                                  kept);
}

// 512 tokens are 32 pages: with 4 nodes kept per level, tokens from page 22 on go through the tree.
TEST(Decode, EqualsTrainingAtEveryPositionOfAModelWithATree) {
  const TrainConfig config =
      tiny_config({"model.attention.gate_keys=1", "model.attention.tree_beam=4",
                   "model.attention.tree_radix=4", "batch.sequence_length=512"});
  expect_decoding_equals_training(config, tiny_plan(), 1e-10);
}

TEST(Decode, EqualsTrainingAtEveryPositionOfADenseModel) {
  expect_decoding_equals_training(tiny_config(), {.window = 112}, 1e-10);
  const TrainConfig plain =
      tiny_config({"model.qk_norm=false", "model.output_gate=false",
                   "model.attention.sink_logit=false", "model.smear_tokens=0"});
  expect_decoding_equals_training(plain, {.window = 112}, 1e-10);
}

// With every expert chosen, because two roundings of one sum may send a token to another one.
TEST(Decode, EqualsTrainingWithinTheRoundingOfBFloat16) {
  expect_decoding_equals_training(
      tiny_config({"runtime.precision=BF16", "model.moe.experts_per_token=4"}), tiny_plan(), 2e-3);
}

}  // namespace

}  // namespace tessera
