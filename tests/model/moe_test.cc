#include "model/moe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "parallel/self_communicator.h"
#include "tests/model/mesh_model.h"
#include "tests/support/compare.h"

// Values and gradients of the whole layer are tested with the model, in transformer_test.cc and
// mesh_test.cc; here is what only shows in one layer.

namespace tessera {
namespace {

using support::expect_same_bits;
using support::Tensor;
using support::tiny_config;
using support::TinyBatch;

constexpr int64_t kHidden = 8;
constexpr int64_t kExperts = 4;

/// One layer on one rank, and the tokens of a tiny batch.
class Layer {
 public:
  explicit Layer(DType dtype)
      : moe_(store_, "moe",
             {.hidden = kHidden,
              .intermediate = 16,
              .experts = kExperts,
              .experts_per_token = 2,
              .shared_experts = 1,
              .mode = RouterMode::kSigmoid,
              .router_scale = 1,
              .balance_loss = 0.1,
              .z_loss = 0.01,
              .capacity_factor = 0,
              .balance_scope = Moe::BalanceScope::kSequence,
              .balance_bias = true,
              .dtype = dtype,
              .init_std = 0.3,
              .out_init_std = 0.3},
             {}, 0),
        config_(tiny_config()),
        batch_(config_, 3),
        counts_(DType::kF32, {1, kExperts}),
        gate_losses_(DType::kF32, {3}),
        gate_stats_(DType::kF32, {6}),
        router_losses_(DType::kF32, {2}),
        dropped_(DType::kF32, {1}),
        loss_(DType::kF64, {1}),
        hits_(DType::kF64, {1}),
        squares_(DType::kF64, {1}),
        sums_{.loss = loss_,
              .hits = hits_,
              .squares = squares_,
              .gate_losses = gate_losses_,
              .gate_stats = gate_stats_,
              .router_losses = router_losses_,
              .dropped_pairs = dropped_,
              .expert_counts = counts_},
        x_(dtype, {static_cast<int64_t>(batch_.tokens.size()), kHidden}) {
    store_.allocate(support::bare_device());
    store_.initialize(stream_, 1);
  }

  StepContext step(bool recompute = false) {
    return {.stream = stream_,
            .arena = arena_,
            .mesh = mesh_,
            .tokens = planner_.plan(stream_, arena_, batch_.view(), plan_),
            .sparsity = plan_,
            .router = router_,
            .sums = sums_,
            .recompute = recompute};
  }
  Parameter& parameter(const std::string& name) { return store_.find("moe." + name); }
  const Moe& moe() const { return moe_; }
  const StepSums& sums() const { return sums_; }
  const Tensor& x() const { return x_; }

 private:
  Stream stream_{support::bare_device(), 1};
  Arena arena_{support::bare_device(), int64_t{4} << 20};
  ParameterStore store_;
  Moe moe_;
  TrainConfig config_;
  TinyBatch batch_;
  SelfCommunicator world_;
  ProcessMesh mesh_{world_, {}};
  TokenPlanner planner_{mesh_, {.block = 16}};
  SparsityPlan plan_ = support::tiny_plan();
  RouterPlan router_;
  Tensor counts_;
  Tensor gate_losses_;
  Tensor gate_stats_;
  Tensor router_losses_;
  Tensor dropped_;
  Tensor loss_;
  Tensor hits_;
  Tensor squares_;
  StepSums sums_;
  Tensor x_;
};

TEST(Moe, RecomputationKeepsTheChoiceAndCountsNothing) {
  Layer layer(DType::kF32);
  const auto x = layer.x().as<float>();
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<float>(std::sin(1.7 * static_cast<double>(i)));
  }
  StepContext step = layer.step();
  Moe::Decision decision = layer.moe().allocate_decision(step);
  const Tensor first(DType::kF32, layer.x().shape());
  const Tensor second(DType::kF32, layer.x().shape());
  (void)layer.moe().forward(step, layer.x(), decision, first);
  const std::vector<double> counts = support::to_doubles(layer.sums().expert_counts);
  const std::vector<double> losses = support::to_doubles(layer.sums().router_losses);
  // Whatever has become of the router, recomputation goes to the experts of the first time.
  support::set_elements<float>(layer.parameter("router.bias").value, {10, 10, -10, -10});
  StepContext again = layer.step(/*recompute=*/true);
  (void)layer.moe().forward(again, layer.x(), decision, second);
  expect_same_bits(second, first, "y");
  EXPECT_EQ(support::to_doubles(layer.sums().expert_counts), counts);
  EXPECT_EQ(support::to_doubles(layer.sums().router_losses), losses);
}

TEST(Moe, LogitsThatTieInBFloat16DoNotTie) {
  Layer layer(DType::kBF16);
  const auto x = layer.x().as<BF16>();
  std::fill(x.begin(), x.end(), from_float<BF16>(1));
  const std::vector<float> logits{1.0f, 1.001f, -1.0f, 1.002f};
  std::vector<float> weight;
  for (int64_t i = 0; i < kExperts * kHidden; ++i) {
    weight.push_back(logits[static_cast<size_t>(i / kHidden)] / static_cast<float>(kHidden));
  }
  support::set_elements(layer.parameter("router.weight").value, weight);
  StepContext step = layer.step();
  Moe::Decision decision = layer.moe().allocate_decision(step);
  const Tensor y(DType::kBF16, layer.x().shape());
  (void)layer.moe().forward(step, layer.x(), decision, y);
  const std::vector<int32_t> experts = support::elements<int32_t>(decision.experts);
  EXPECT_EQ((std::set<int32_t>{experts[0], experts[1]}), (std::set<int32_t>{1, 3}));
}

TEST(Moe, EveryRankCountsThePairsBeyondItsCapacity) {
  constexpr double kFactor = 1.2;
  const TrainConfig config = tiny_config({"model.moe.capacity_factor=1.2", "model.moe.experts=8",
                                          "batch.sequences=4", "model.heads=8"});
  const TinyBatch batch(config, 5);
  for (const MeshShape& shape :
       support::fewer<MeshShape>({{1, 2, 2, 2}, {1, 1, 1, 1}, {2, 2, 1, 2}, {1, 4, 1, 1}})) {
    const int64_t pairs = 4 * 112 / shape.ranks() * 2;
    const double bound = std::ceil(kFactor * static_cast<double>(pairs) / 8);
    run_ranks(shape.ranks(), [&](Communicator& world) {
      support::MeshModel rank(config, world, shape);
      Transformer::Run run = rank.run(support::tiny_plan());
      rank.model.forward_backward(run, rank.part_of(batch.view()), 1.0f / 448);
      EXPECT_TRUE(std::isfinite(support::elements<double>(run.sums.loss)[0]));
      double expected = 0;
      double all = 0;
      for (const float count : support::elements<float>(run.sums.expert_counts)) {
        expected += std::max(0.0, count - bound);
        all += count;
      }
      EXPECT_EQ(all, static_cast<double>(pairs)) << to_string(shape);
      EXPECT_GT(expected, 0) << to_string(shape);
      EXPECT_EQ(support::elements<float>(run.sums.dropped_pairs)[0], expected) << to_string(shape);
    });
  }
}

}  // namespace
}  // namespace tessera
