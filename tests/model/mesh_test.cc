#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "model/whole_parameters.h"
#include "parallel/thread_communicator.h"
#include "tests/model/tiny_model.h"
#include "tests/support/compare.h"

// The same global batch on any mesh gives the loss and the gradients of one rank.

namespace tessera {
namespace {

using support::fewer;
using support::tiny_config;
using support::tiny_plan;

/// Of the global batch.
int64_t sequences() {
  return support::takes_less() ? 2 : 8;
}

constexpr int64_t kLength = 112;
constexpr float kScale = 1.0f / 600;

/// 16 query heads in 4 groups: 12 local heads, so that most tensor ranks begin or end inside a
/// group and 8 of them have 2 or 1 heads; a vocabulary of 61; documents of uneven lengths.
TrainConfig mesh_config(const std::vector<std::string>& overrides = {}) {
  std::vector<std::string> all{"model.heads=16",
                               "model.kv_heads=4",
                               "model.moe.experts=8",
                               concat("batch.sequences=", sequences()),
                               "batch.micro_sequences=0",
                               "model.moe.shared_experts=2",
                               "model.moe.balance_scope=SEQUENCE"};
  all.insert(all.end(), overrides.begin(), overrides.end());
  return tiny_config(all);
}

SparsityPlan dense_plan() {
  return {.window = kLength};
}

/// All gated, nothing dropped: the end of the dense stage.
SparsityPlan warmup_plan() {
  SparsityPlan plan = tiny_plan();
  plan.kept = 7;
  plan.window = kLength;
  plan.strength = 0;
  return plan;
}

/// The tokens of sequences [first, first + count) of the global batch.
class Sequences {
 public:
  Sequences(const TrainConfig& config, int64_t first, int64_t count) : count_(count) {
    const auto vocabulary = static_cast<uint32_t>(config.model().vocabulary());
    for (int64_t i = first * kLength; i < (first + count) * kLength; ++i) {
      const auto words = philox(7, 0, static_cast<uint64_t>(i));
      tokens_.push_back(static_cast<int32_t>(words[0] % vocabulary));
      targets_.push_back(i % 11 == 7 ? -1 : static_cast<int32_t>(words[1] % vocabulary));
    }
    for (int64_t s = 0; s < count; ++s) {
      const auto begin = static_cast<int32_t>(s * kLength);
      starts_.push_back(begin);
      if ((first + s) % 2 == 0) continue;
      // Cut inside a block, inside a tile, and near the end of a rank's part.
      starts_.push_back(begin + 13 + static_cast<int32_t>(first + s));
      starts_.push_back(begin + 71);
    }
    // The same number of segments for any sequences; those at the end are empty.
    starts_.resize(static_cast<size_t>(3 * count + 1), static_cast<int32_t>(count * kLength));
  }

  Batch view() const {
    const auto of = [](const std::vector<int32_t>& v) {
      return ConstTensorView(v.data(), DType::kI32, {static_cast<int64_t>(v.size())}, Device{});
    };
    return {
        .tokens = of(tokens_), .targets = of(targets_), .starts = of(starts_), .sequences = count_};
  }

 private:
  std::vector<int32_t> tokens_;
  std::vector<int32_t> targets_;
  std::vector<int32_t> starts_;
  int64_t count_;
};

/// What one optimizer step learns from the global batch.
struct Step {
  double loss = 0;
  std::vector<double> auxiliary;
  std::vector<float> expert_counts;
  std::map<std::string, std::vector<float>> gradients;
};

struct Case {
  MeshShape mesh;
  SequenceOrder order = SequenceOrder::kContiguous;
  SparsityPlan plan = tiny_plan();
  Recompute recompute = Recompute::kNothing;
};

DType dtype_of(const TrainConfig& config) {
  return config.runtime().precision() == RuntimeConfig::F32 ? DType::kF32 : DType::kBF16;
}

/// One rank of a mesh: model, parameters and one global batch.
class Rank {
 public:
  Rank(const TrainConfig& config, Communicator& world, const Case& c)
      : stream_(support::bare_device(), 1),
        mesh_(world, c.mesh),
        model_(config.model(), dtype_of(config), c.recompute, store_, place_in(mesh_)),
        planner_(mesh_, model_.planner_options(c.order)),
        arena_(support::bare_device(), int64_t{16} << 20),
        sums_(support::bare_device(), model_) {
    store_.allocate(support::bare_device());
    store_.initialize(stream_, config.seed());
    store_.zero_gradients(stream_);
    sums_.clear(stream_);
    const Communicator& batch_ranks = mesh_.group(kBatch);
    const int64_t count = sequences() / batch_ranks.size();
    const Sequences own(config, batch_ranks.rank() * count, count);
    Transformer::Run run{.stream = stream_,
                         .arena = arena_,
                         .planner = planner_,
                         .sparsity = c.plan,
                         .router = {.share = 1 / static_cast<float>(batch_ranks.size())},
                         .sums = sums_.views()};
    model_.forward_backward(run, own.view(), kScale);
    for (const Parameter& parameter : store_.all()) {
      if (parameter.trained) {
        group_of(parameter.placement).all_reduce(stream_, parameter.grad, Reduction::kSum);
      }
    }
  }

  Step step() {
    Step step;
    mesh_.world().all_reduce(stream_, sums_.views().expert_counts, Reduction::kSum);
    const StepSums& sums = sums_.read(stream_);
    std::vector<double> values{sums.loss.as<double>()[0]};
    for (const TensorView& part : {sums.gate_losses, sums.router_losses, sums.gate_stats}) {
      for (const float x : part.as<float>()) values.push_back(x);
    }
    mesh_.world().all_reduce_values(values);
    step.loss = values[0];
    step.auxiliary.assign(values.begin() + 1, values.end());
    const auto counts = sums.expert_counts.as<float>();
    step.expert_counts.assign(counts.begin(), counts.end());
    return step;
  }

  const ParameterStore& store() const { return store_; }
  Stream& stream() { return stream_; }

 private:
  Communicator& group_of(Placement placement) {
    if (placement == Placement::kTensor) return mesh_.group(kTensorReplicas);
    if (placement == Placement::kExpert) return mesh_.group(kExpertReplicas);
    return mesh_.world();
  }

  Stream stream_;
  ProcessMesh mesh_;
  ParameterStore store_;
  Transformer model_;
  TokenPlanner planner_;
  Arena arena_;
  StepSumsBuffer sums_;
};

Step one_rank(const TrainConfig& config, const SparsityPlan& plan) {
  Step step;
  run_ranks(1, [&](Communicator& world) {
    Rank rank(config, world, {.mesh = {}, .plan = plan});
    step = rank.step();
    const WholeParameters gradients(rank.stream(), rank.store(), WholeParameters::Of::kGradients);
    for (const auto& [name, data] : gradients.all()) {
      step.gradients[name] = support::elements<float>(data);
    }
  });
  return step;
}

void expect_near(const std::vector<double>& found, const std::vector<double>& expected,
                 double tolerance, const std::string& what) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_NEAR(found[i], expected[i], tolerance * (std::abs(expected[i]) + 1e-6)) << what << i;
  }
}

/// Each rank compares its own shards with the whole gradients of one rank.
void expect_gradients(const ParameterStore& store, const Step& expected, double tolerance,
                      const std::string& what) {
  for (const Parameter& parameter : store.all()) {
    if (!parameter.trained) continue;
    const std::vector<float>& whole = expected.gradients.at(parameter.name);
    const std::vector<float> found = support::elements<float>(parameter.grad);
    double difference = 0;
    double squares = 0;
    for (const float x : whole) squares += static_cast<double>(x) * x;
    for_each_run(parameter.shard, [&](const ShardRun& run) {
      for (int64_t i = 0; i < run.count; ++i) {
        const double d = static_cast<double>(found[static_cast<size_t>(run.local + i)]) -
                         whole[static_cast<size_t>(run.whole + i)];
        difference += d * d;
      }
    });
    EXPECT_LE(std::sqrt(difference), tolerance * std::sqrt(squares) + 1e-9)
        << what << ", " << parameter.name << " " << parameter.shard.local();
  }
}

void expect_invariant(const TrainConfig& config, const Case& c, const Step& expected,
                      double tolerance = 2e-5) {
  const std::string what =
      concat(to_string(c.mesh), c.order == SequenceOrder::kZigzag ? ", zigzag" : "");
  run_ranks(c.mesh.ranks(), [&](Communicator& world) {
    Rank rank(config, world, c);
    const Step found = rank.step();
    EXPECT_NEAR(found.loss, expected.loss, tolerance * expected.loss) << what;
    expect_near(found.auxiliary, expected.auxiliary, tolerance, what + ", auxiliary ");
    EXPECT_EQ(found.expert_counts, expected.expert_counts) << what;
    expect_gradients(rank.store(), expected, tolerance, what);
  });
}

std::vector<MeshShape> factorisations(int ranks) {
  std::vector<MeshShape> all;
  for (int data = 1; data <= ranks; ++data) {
    for (int expert = 1; data * expert <= ranks; ++expert) {
      for (int sequence = 1; data * expert * sequence <= ranks; ++sequence) {
        if (ranks % (data * expert * sequence) != 0) continue;
        all.push_back({data, expert, sequence, ranks / (data * expert * sequence)});
      }
    }
  }
  return all;
}

TEST(Mesh, EveryFactorisationOfTwoRanksIsOneRank) {
  const TrainConfig config = mesh_config();
  for (const SparsityPlan& plan : fewer<SparsityPlan>({tiny_plan(), dense_plan(), warmup_plan()})) {
    const Step expected = one_rank(config, plan);
    for (const MeshShape& mesh : factorisations(2)) {
      if (support::takes_less() && mesh.expert == 1) continue;
      expect_invariant(config, {.mesh = mesh, .plan = plan}, expected);
    }
    expect_invariant(config, {.mesh = {1, 1, 2, 1}, .order = SequenceOrder::kZigzag, .plan = plan},
                     expected);
  }
}

TEST(Mesh, EveryFactorisationOfEightRanksIsOneRank) {
  const TrainConfig config = mesh_config();
  const Step expected = one_rank(config, tiny_plan());
  for (const MeshShape& mesh : factorisations(8)) {
    const bool shares = sequences() % (mesh.data * mesh.expert) == 0;
    if (support::takes_less() && !(shares && mesh.expert == 2 && mesh.sequence == 2)) continue;
    expect_invariant(config, {.mesh = mesh}, expected);
  }
}

TEST(Mesh, EveryStageOfSparsityIsThatOfOneRank) {
  const TrainConfig config = mesh_config();
  for (const SparsityPlan& plan : fewer<SparsityPlan>({warmup_plan(), dense_plan()})) {
    const Step expected = one_rank(config, plan);
    for (const MeshShape& mesh : fewer<MeshShape>({{1, 2, 2, 2}, {2, 1, 2, 2}, {1, 1, 4, 2}})) {
      expect_invariant(config, {.mesh = mesh, .plan = plan}, expected);
    }
  }
}

TEST(Mesh, ZigzagAndRecomputationChangeNothing) {
  const TrainConfig config = mesh_config();
  const Step expected = one_rank(config, tiny_plan());
  for (const MeshShape& mesh : fewer<MeshShape>({{1, 1, 2, 4}, {1, 1, 8, 1}, {1, 2, 2, 2}})) {
    expect_invariant(
        config, {.mesh = mesh, .order = SequenceOrder::kZigzag, .recompute = Recompute::kBlock},
        expected);
    if (support::takes_less()) continue;
    expect_invariant(config, {.mesh = mesh, .order = SequenceOrder::kZigzag}, expected);
    expect_invariant(config, {.mesh = mesh, .recompute = Recompute::kBlock}, expected);
  }
}

}  // namespace
}  // namespace tessera
