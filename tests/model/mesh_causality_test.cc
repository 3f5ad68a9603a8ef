// On any mesh a token changes no bit at an earlier position, and at later positions of a model of
// one layer exactly what attends to it.

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "parallel/sequence_layout.h"
#include "tests/model/mesh_model.h"
#include "tests/support/random_tensor.h"

namespace tessera {
namespace {

using support::fewer;
using support::MeshModel;
using support::Tensor;
using support::tiny_config;
using support::TinyBatch;

constexpr int64_t kLength = 112;
constexpr int64_t kBlock = 16;
constexpr int64_t kDocument = 13;  ///< where the second document of sequence 0 begins

struct Case {
  MeshShape mesh;
  SequenceOrder order = SequenceOrder::kContiguous;
};

std::string name_of(const Case& c) {
  return concat(to_string(c.mesh), c.order == SequenceOrder::kZigzag ? ", zigzag" : "");
}

const std::vector<Case>& cases() {
  static const std::vector<Case> kAll{{.mesh = {1, 2, 2, 2}},
                                      {.mesh = {1, 1, 4, 2}},
                                      {.mesh = {1, 2, 2, 2}, .order = SequenceOrder::kZigzag},
                                      {.mesh = {1, 1, 8, 1}, .order = SequenceOrder::kZigzag}};
  return kAll;
}

TrainConfig config_of(const std::vector<std::string>& more = {}) {
  std::vector<std::string> all{"model.heads=8", "model.kv_heads=2", "model.moe.shared_experts=2",
                               "model.init_std=0.4", "batch.sequences=2"};
  all.insert(all.end(), more.begin(), more.end());
  return tiny_config(all);
}

/// One layer, so that a token reaches only what attends to it.
TrainConfig one_layer(const std::vector<std::string>& more = {}) {
  std::vector<std::string> all{"model.layers=1", "model.moe.dense_layers=0"};
  all.insert(all.end(), more.begin(), more.end());
  return config_of(all);
}

/// The loss of every token of the batch, for several targets each: what is equal in all of them has
/// the same logits.
std::vector<float> token_losses(const TrainConfig& config, const Case& c, const SparsityPlan& plan,
                                const TinyBatch& batch) {
  constexpr int kTargets = 3;
  const int64_t all = batch.sequences * kLength;
  std::vector<float> losses(static_cast<size_t>(kTargets * all), -1);
  run_ranks(c.mesh.ranks(), [&](Communicator& world) {
    MeshModel rank(config, world, c.mesh, c.order);
    const int64_t first = rank.first_of(batch.sequences) * kLength;
    const SequenceLayout layout(c.order, rank.sequences_of(batch.sequences), kLength,
                                c.mesh.sequence, c.mesh.tensor);
    const Tensor found(DType::kF32, {layout.sequence_rows()});
    TinyBatch own = batch;
    for (int target = 0; target < kTargets; ++target) {
      for (size_t i = 0; i < own.targets.size(); ++i) {
        own.targets[i] = (own.tokens[i] + 7 + 19 * target) % config.model().vocabulary();
      }
      Transformer::Run run = rank.run(plan);
      rank.model.forward(run, rank.part_of(own.view()), found);
      if (rank.mesh.coordinate(Axis::kTensor) != 0) continue;
      size_t row = 0;
      for (const TokenRange& range :
           layout.sequence_tokens(rank.mesh.coordinate(Axis::kSequence))) {
        for (int64_t token = range.begin; token < range.end; ++token) {
          losses[static_cast<size_t>(target * all + first + token)] = found.as<float>()[row++];
        }
      }
    }
  });
  return losses;
}

/// What the tokens of a batch reach, in one case.
class Reach {
 public:
  Reach(const TrainConfig& config, const Case& c, const SparsityPlan& plan)
      : config_(config), case_(c), plan_(plan), batch_(config, 5), before_(losses(batch_)) {}

  /// Tokens whose output changes in any bit when token `changed` does.
  std::set<int64_t> of(int64_t changed) const {
    TinyBatch other = batch_;
    int32_t& id = other.tokens[static_cast<size_t>(changed)];
    id = (id + 1) % config_.model().vocabulary();
    const std::vector<float> after = losses(other);
    const int64_t all = batch_.sequences * kLength;
    std::set<int64_t> tokens;
    for (size_t i = 0; i < before_.size(); ++i) {
      EXPECT_GE(before_[i], 0) << "no rank has token " << static_cast<int64_t>(i) % all;
      if (before_[i] != after[i]) tokens.insert(static_cast<int64_t>(i) % all);
    }
    return tokens;
  }

 private:
  std::vector<float> losses(const TinyBatch& batch) const {
    return token_losses(config_, case_, plan_, batch);
  }

  const TrainConfig& config_;
  Case case_;
  SparsityPlan plan_;
  TinyBatch batch_;
  std::vector<float> before_;
};

TEST(MeshCausality, ATokenOfTheLastSequenceRankReachesNothingBeforeIt) {
  const TrainConfig config = config_of();
  for (const Case& c : fewer(cases())) {
    const Reach reach(config, c, support::tiny_plan());
    // Zigzag gives the last rank the middle; the end is the first rank's.
    for (const int64_t changed : fewer<int64_t>({59, kLength - 2})) {
      const std::set<int64_t> reached = reach.of(changed);
      ASSERT_FALSE(reached.empty());
      EXPECT_EQ(*reached.begin(), changed) << name_of(c);
      EXPECT_LT(*reached.rbegin(), kLength) << name_of(c) << ": the other sequence changed";
      EXPECT_EQ(reached.size(), static_cast<size_t>(kLength - changed)) << name_of(c);
    }
  }
}

TEST(MeshCausality, ALocalHeadSeesItsWindowAndTheSinksOfItsDocument) {
  TrainConfig config = one_layer();
  config.mutable_model()->mutable_attention()->set_global_groups(0);
  const SparsityPlan plan = support::tiny_plan();
  const int64_t sinks = config.model().attention().sink_tokens();
  const int64_t smear = config.model().smear_tokens();  // what follows a token has taken it up
  for (const Case& c : fewer(cases())) {
    const Reach reach(config, c, plan);
    // In the first document, a sink of the second, after it, the first that is in the window of
    // token 56, where a rank begins, and the last that is not; the one before token 56, which that
    // rank takes up; and in the other sequence.
    for (const int64_t changed : fewer<int64_t>({57 - plan.window, 3, kDocument + 1, kDocument + 2,
                                                 56 - plan.window, 55, kLength + 20})) {
      const int64_t end =
          changed < kDocument ? kDocument : (changed < kLength ? kLength : 2 * kLength);
      const int64_t begin = changed < kDocument ? 0 : (changed < kLength ? kDocument : kLength);
      std::set<int64_t> expected;
      for (int64_t query = changed; query < end; ++query) {
        const int64_t last = std::min(changed + smear, query);
        if (query - last < plan.window || changed - begin < sinks) expected.insert(query);
      }
      EXPECT_EQ(reach.of(changed), expected) << name_of(c) << ", " << changed;
    }
  }
}

TEST(MeshCausality, AGlobalHeadSeesTheBlocksThatItHasChosen) {
  TrainConfig config = one_layer();
  config.mutable_model()->mutable_attention()->set_global_groups(2);
  SparsityPlan plan = support::tiny_plan();
  plan.strength = 0;  // else the score of the best block that is not chosen counts too
  const std::vector<int64_t> all = fewer<int64_t>({kDocument + 18, kDocument + 3, kLength + 40});
  std::vector<std::set<int64_t>> expected;
  const Reach alone(config, {}, plan);
  for (const int64_t changed : all) {
    const int64_t begin = changed < kLength ? kDocument : kLength;
    const int64_t end = changed < kLength ? kLength : 2 * kLength;
    const int64_t block = (changed - begin) / kBlock;
    std::set<int64_t> forced;
    for (int64_t query = changed; query < end; ++query) {
      const bool sink = block < config.model().attention().sink_blocks();
      if (sink || (query - begin) / kBlock == block) forced.insert(query);
    }
    const std::set<int64_t>& found = expected.emplace_back(alone.of(changed));
    EXPECT_TRUE(std::includes(found.begin(), found.end(), forced.begin(), forced.end()));
    EXPECT_EQ(*found.begin(), changed);
    EXPECT_LT(*found.rbegin(), end);
    if (block == 0) continue;
    // Others chose the block too, but not all.
    EXPECT_GT(found.size(), forced.size());
    EXPECT_LT(found.size(), static_cast<size_t>(end - changed));
  }
  for (const Case& c : fewer(cases())) {
    const Reach reach(config, c, plan);
    for (size_t i = 0; i < all.size(); ++i) {
      EXPECT_EQ(reach.of(all[i]), expected[i]) << name_of(c) << ", " << all[i];
    }
  }
}

}  // namespace
}  // namespace tessera
