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

/// A sequence, its logits as training has them, and caches to decode copies of it.
class Decoding {
 public:
  Decoding(const TrainConfig& config, const SparsityPlan& plan, int64_t sequences,
           std::span<const int64_t> kept_of_layers = {})
      : tiny_(config),
        batch_(config, 5),
        length_(config.batch().sequence_length()),
        sequences_(sequences),
        run_(tiny_.run(plan)) {
    batch_.starts = {0, static_cast<int32_t>(length_)};
    batch_.sequences = 1;
    batch_.tokens.resize(static_cast<size_t>(length_));
    batch_.targets.resize(static_cast<size_t>(length_));
    const int64_t vocabulary = config.model().vocabulary();
    buffer_ = Buffer(support::bare_device(), (length_ + sequences) * vocabulary * 4);
    expected_ = buffer_.view(DType::kF32, {length_, vocabulary});
    found_ = buffer_.view(DType::kF32, {sequences, vocabulary}, length_ * vocabulary * 4);
    run_.kept_of_layers = kept_of_layers;
    tiny_.model.logits(run_, batch_.view(), expected_);
    caches_ = tiny_.model.make_caches(tiny_.stream, plan, {sequences, length_});
  }

  int64_t length() const { return length_; }
  /// The token at `position`, or -1; backwards: of the sequence from its end on.
  int32_t token(int64_t position, bool backwards = false) const {
    if (position < 0) return -1;
    return batch_.tokens[static_cast<size_t>(backwards ? length_ - 1 - position : position)];
  }
  /// The next tokens of all copies, of which some are backwards.
  void decode(const std::vector<int32_t>& positions, const std::vector<bool>& backwards) {
    const int64_t smear = tiny_.model.smear_tokens();
    std::vector<int32_t> ids;
    for (size_t s = 0; s < positions.size(); ++s) {
      for (int64_t j = 0; j <= smear; ++j) ids.push_back(token(positions[s] - j, backwards[s]));
    }
    const DecodeInput input{host_view(ids).reshape({sequences_, smear + 1}), positions};
    tiny_.model.decode(run_, input, caches_, found_);
  }
  /// The first `tokens` at once.
  void prefill(int64_t place, int64_t tokens) {
    const std::vector<int32_t> starts{0, static_cast<int32_t>(tokens)};
    const Batch beginning{batch_.view().tokens.rows(0, tokens),
                          batch_.view().targets.rows(0, tokens), host_view(starts), 1};
    tiny_.model.prefill(run_, beginning, place, caches_);
  }
  std::vector<double> found(int64_t sequence) const {
    return support::to_doubles(found_.rows(sequence, 1));
  }
  std::vector<double> trained(int64_t position) const {
    return support::to_doubles(expected_.rows(position, 1));
  }

 private:
  TinyModel tiny_;
  TinyBatch batch_;
  int64_t length_;
  int64_t sequences_;
  Transformer::Run run_;
  Buffer buffer_;
  TensorView expected_;
  TensorView found_;
  std::vector<AttentionCache> caches_;
};

/// Three copies of a sequence, each behind the one before by some tokens and the last one begun
/// where another sequence was: all rows must be what training gives at their positions.
void expect_decoding_equals_training(const TrainConfig& config, const SparsityPlan& plan,
                                     double tolerance,
                                     std::span<const int64_t> kept_of_layers = {}) {
  const std::vector<int64_t> behind =
      support::takes_less() ? std::vector<int64_t>{0, 5} : std::vector<int64_t>{0, 5, 37};
  Decoding all(config, plan, std::ssize(behind), kept_of_layers);
  std::vector<double> all_found, all_expected;
  for (int64_t step = 0; step < all.length(); ++step) {
    std::vector<int32_t> positions;
    std::vector<bool> backwards;
    for (const int64_t late : behind) {
      // Before its time a sequence is another one.
      positions.push_back(static_cast<int32_t>(step >= late ? step - late : step));
      backwards.push_back(step < late);
    }
    all.decode(positions, backwards);
    for (size_t s = 0; s < behind.size(); ++s) {
      if (backwards[s]) continue;
      const auto row = all.found(static_cast<int64_t>(s));
      const auto trained = all.trained(positions[s]);
      if (config.runtime().precision() == RuntimeConfig::F32) {
        support::expect_close(row, trained, tolerance,
                              concat("sequence ", s, " position ", positions[s]));
      }
      all_found.insert(all_found.end(), row.begin(), row.end());
      all_expected.insert(all_expected.end(), trained.begin(), trained.end());
    }
  }
  support::expect_close(all_found, all_expected, tolerance, "all positions");
}

/// Of three places the middle one gets a prompt of `prompt` tokens where another sequence has been
/// for some time; the others go on with theirs.
void expect_prefill_equals_training(const TrainConfig& config, const SparsityPlan& plan,
                                    double tolerance, int64_t prompt) {
  constexpr int64_t kBefore = 21;
  Decoding all(config, plan, 3);
  const std::vector<bool> before{false, true, true}, after{false, false, true};
  int32_t position = 0;
  for (; position < kBefore; ++position) all.decode({position, position, position}, before);
  all.prefill(1, prompt);
  std::vector<double> all_found, all_expected;
  for (auto of_prompt = static_cast<int32_t>(prompt); of_prompt < all.length(); ++of_prompt) {
    const auto others = static_cast<int32_t>(position++ % all.length());
    all.decode({others, of_prompt, others}, after);
    const auto row = all.found(1), trained = all.trained(of_prompt);
    if (config.runtime().precision() == RuntimeConfig::F32) {
      support::expect_close(row, trained, tolerance, concat("position ", of_prompt));
      support::expect_close(all.found(0), all.trained(others), tolerance,
                            concat("the sequence before, position ", others));
    }
    all_found.insert(all_found.end(), row.begin(), row.end());
    all_expected.insert(all_expected.end(), trained.begin(), trained.end());
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

// Prompts of one page, whose tokens the window still has, and of many.
TEST(Prefill, IsGoneOnWithAsTrainingDoes) {
  for (const char* keys : {"1", "2"}) {
    const TrainConfig config = tiny_config({concat("model.attention.gate_keys=", keys)});
    for (const int64_t prompt : support::fewer<int64_t>({80, 16})) {
      expect_prefill_equals_training(config, tiny_plan(), 1e-10, prompt);
    }
  }
}

TEST(Prefill, OfADenseModel) {
  expect_prefill_equals_training(tiny_config(), {.window = 112}, 1e-10, 64);
}

// 32 pages, of which 28 come at once: the tree is in use from page 22 on.
TEST(Prefill, OfAModelWithATree) {
  const TrainConfig config =
      tiny_config({"model.attention.gate_keys=1", "model.attention.tree_beam=4",
                   "model.attention.tree_radix=4", "batch.sequence_length=512"});
  expect_prefill_equals_training(config, tiny_plan(), 1e-10, 448);
}

TEST(Prefill, WithinTheRoundingOfBFloat16) {
  expect_prefill_equals_training(
      tiny_config({"runtime.precision=BF16", "model.moe.experts_per_token=4"}), tiny_plan(), 2e-3,
      64);
}

TEST(Prefill, SaysWhatDoesNotFit) {
  Decoding all(tiny_config(), tiny_plan(), 1);
  support::expect_error([&] { all.prefill(0, 17); },
                        "prefill: a prompt has 17 tokens, expected whole pages of 16");
}

}  // namespace

}  // namespace tessera
