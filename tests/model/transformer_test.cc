#include "model/transformer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <utility>

#include "tests/model/tiny_model.h"
#include "tests/support/compare.h"

namespace tessera {

namespace {

using support::fewer;
using support::tiny_batch_config;
using support::tiny_config;
using support::tiny_plan;
using support::TinyBatch;
using support::TinyModel;

constexpr float kScale = 1.0f / 200;

SparsityPlan dense_plan() {
  return {.window = 112};
}

// Loss and all gradients of one micro-batch.
std::vector<double> losses_and_gradients(TinyModel& tiny, const SparsityPlan& plan,
                                         const TinyBatch& batch) {
  tiny.store.zero_gradients(tiny.stream);
  Transformer::Run run = tiny.run(plan);
  tiny.model.forward_backward(run, batch.view(), kScale);
  std::vector<double> all{tiny.loss(), tiny.auxiliary()};
  for (const float g : support::elements<float>(tiny.store.gradients())) all.push_back(g);
  for (const float n : support::elements<float>(tiny.sums.expert_counts)) all.push_back(n);
  return all;
}

// The slope of the objective along the gradient of `parameter`, which is the gradient's norm, and
// the best signal that losses in f32 can give; and that norm.
std::pair<double, double> slope_and_norm(TinyModel& tiny, const SparsityPlan& plan,
                                         const TinyBatch& batch, Parameter& parameter) {
  const std::vector<float> before = support::elements<float>(parameter.value);
  const std::vector<float> grad = support::elements<float>(parameter.grad);
  double norm = 0;
  for (const float g : grad) norm += static_cast<double>(g) * g;
  norm = std::sqrt(norm);
  if (norm == 0) return {0, 0};
  const double step = 2e-3 / std::max(1.0, norm);
  const auto objective_at = [&](double distance) {
    std::vector<float> value = before;
    for (size_t i = 0; i < value.size(); ++i) {
      value[i] += static_cast<float>(distance * grad[i] / norm);
    }
    support::set_elements(parameter.value, value);
    const double found = tiny.objective(plan, batch, kScale);
    support::set_elements(parameter.value, before);
    return found;
  };
  return {(objective_at(step) - objective_at(-step)) / (2 * step), norm};
}

TEST(Transformer, GradientIsTheSlopeOfTheLossInEveryParameter) {
  // With every expert chosen the objective has no jumps where a token changes its experts.
  const TrainConfig config = tiny_batch_config({"model.moe.experts_per_token=4"});
  const TinyBatch batch(config, 5);
  // The gate's own losses do not reach the trunk, so the objective is without them.
  SparsityPlan gated = tiny_plan();
  gated.strength = 1 - 0x1p-10f;
  gated.kl = gated.entropy = gated.z_loss = 0;
  int64_t number = 0;
  for (const SparsityPlan& plan : fewer<SparsityPlan>({gated, dense_plan()})) {
    TinyModel tiny(config);
    losses_and_gradients(tiny, plan, batch);
    for (Parameter& parameter : tiny.store.all()) {
      if (!parameter.trained || (support::takes_less() && number++ % 5 != 0)) continue;
      const auto [slope, norm] = slope_and_norm(tiny, plan, batch, parameter);
      EXPECT_NEAR(slope, norm, 0.03 * norm + 2e-3)
          << parameter.name << (plan.gated ? ", gated" : ", dense");
    }
  }
}

TEST(Transformer, GateLearnsFromItsOwnLosses) {
  const TrainConfig config = tiny_batch_config();
  const TinyBatch batch(config, 5);
  SparsityPlan plan = tiny_plan();
  plan.strength = 0;  // no LM gradient through the gate
  plan.kl = 0.05f;
  TinyModel tiny(config);
  losses_and_gradients(tiny, plan, batch);
  for (const char* name : {"query.weight", "key.weight"}) {
    Parameter& parameter = tiny.store.find(concat("layers.1.attention.gate.", name));
    const auto [slope, norm] = slope_and_norm(tiny, plan, batch, parameter);
    EXPECT_GT(norm, 0.01) << name;
    EXPECT_NEAR(slope, norm, 0.03 * norm) << name;
  }
}

TEST(Transformer, BlocksChosenByChanceAreOthersInTheNextDrawingAndTheSameInOne) {
  TrainConfig config = tiny_batch_config();
  config.mutable_model()->mutable_attention()->set_selection(AttentionConfig::RANDOM);
  const TinyBatch batch(config, 5);
  SparsityPlan plan = tiny_plan();
  plan.kl = plan.entropy = plan.z_loss = 0;
  const auto loss = [&](uint64_t draw, Recompute recompute = Recompute::kNothing) {
    TinyModel tiny(config, 1, recompute);
    plan.draw = draw;
    losses_and_gradients(tiny, plan, batch);
    return tiny.loss();
  };
  const double first = loss(1);
  EXPECT_EQ(loss(1), first);
  EXPECT_EQ(loss(1, Recompute::kBlock), first);
  EXPECT_GT(std::abs(loss(2) - first), 1e-3);
}

TEST(Transformer, EveryTrainedParameterGetsAGradient) {
  const TrainConfig config = tiny_batch_config();
  TinyModel tiny(config);
  losses_and_gradients(tiny, tiny_plan(), TinyBatch(config, 5));
  for (const Parameter& parameter : tiny.store.all()) {
    if (!parameter.trained) continue;
    double norm = 0;
    for (const float g : support::elements<float>(parameter.grad)) norm += std::abs(g);
    EXPECT_GT(norm, 0) << parameter.name;
  }
}

TEST(Transformer, PlanCountsTheBytesOfTheRealStepExactly) {
  for (const Recompute recompute : {Recompute::kNothing, Recompute::kBlock}) {
    const TrainConfig config = tiny_batch_config();
    const TinyBatch batch(config, 5);
    const Device device{DeviceKind::kPlan};
    Stream stream(device);
    ParameterStore store;
    const Transformer model(config.model(), DType::kF32, recompute, store);
    store.allocate(device);
    Arena arena(device, 0);
    StepSumsBuffer sums(device, model);
    SingleRank alone(model);
    Transformer::Run run = alone.run(stream, arena, tiny_plan(), sums.views());
    const Batch real = batch.view();
    const auto planned = [&](const ConstTensorView& x) {
      return ConstTensorView(nullptr, x.dtype(), x.shape(), device);
    };
    model.forward_backward(run,
                           {.tokens = planned(real.tokens),
                            .targets = planned(real.targets),
                            .starts = planned(real.starts),
                            .sequences = real.sequences},
                           kScale);
    TinyModel exact(config, 1, recompute, arena.high_water());
    losses_and_gradients(exact, tiny_plan(), batch);
    EXPECT_EQ(exact.arena.high_water(), arena.high_water());
    TinyModel short_of_one_line(config, 1, recompute, arena.high_water() - 1);
    support::expect_error([&] { losses_and_gradients(short_of_one_line, tiny_plan(), batch); },
                          "activation arena is full at '");
  }
}

TEST(Transformer, RecomputationAndThreadsChangeNoBit) {
  const TrainConfig config = tiny_batch_config();
  const TinyBatch batch(config, 5);
  TinyModel tiny(config);
  const std::vector<double> expected = losses_and_gradients(tiny, tiny_plan(), batch);
  for (const int threads : fewer<int>({1, 3})) {
    for (const Recompute recompute : {Recompute::kNothing, Recompute::kBlock}) {
      TinyModel other(config, threads, recompute);
      EXPECT_EQ(losses_and_gradients(other, tiny_plan(), batch), expected)
          << threads << " threads, recompute " << static_cast<int>(recompute);
    }
  }
}

TEST(Transformer, LaterTokensChangeNoEarlierLogit) {
  const TrainConfig config = tiny_config();
  TinyBatch batch(config, 5);
  TinyModel tiny(config);
  const int64_t tokens = static_cast<int64_t>(batch.tokens.size());
  const int64_t vocabulary = config.model().vocabulary();
  Buffer before(support::bare_device(), tokens * vocabulary * 4);
  Buffer after(support::bare_device(), tokens * vocabulary * 4);
  const Shape shape{tokens, vocabulary};
  Transformer::Run run = tiny.run(tiny_plan());
  tiny.model.logits(run, batch.view(), before.view(DType::kF32, shape));
  for (const int64_t changed : fewer<int64_t>({40, 1, 12, 111})) {
    TinyBatch other = batch;
    int32_t& token = other.tokens[static_cast<size_t>(changed)];
    token = (token + 1) % config.model().vocabulary();
    tiny.model.logits(run, other.view(), after.view(DType::kF32, shape));
    support::expect_same_bits(after.view(DType::kF32, shape).rows(0, changed),
                              before.view(DType::kF32, shape).rows(0, changed),
                              concat("token ", changed, " changed"));
    // The second sequence never sees the first.
    support::expect_same_bits(after.view(DType::kF32, shape).rows(112, 112),
                              before.view(DType::kF32, shape).rows(112, 112), "other sequence");
  }
}

TEST(Transformer, GateLossesDoNotReachTheTrunk) {
  const TrainConfig config = tiny_batch_config();
  const TinyBatch batch(config, 5);
  SparsityPlan plan = tiny_plan();
  plan.strength = 0;  // no LM gradient through the gate either
  TinyModel with(config);
  losses_and_gradients(with, plan, batch);
  plan.kl = plan.entropy = plan.z_loss = 0;
  TinyModel without(config);
  losses_and_gradients(without, plan, batch);
  for (size_t i = 0; i < with.store.all().size(); ++i) {
    const Parameter& parameter = with.store.all()[i];
    if (!parameter.trained || parameter.name.find(".gate.") != std::string::npos) continue;
    support::expect_same_bits(parameter.grad, without.store.all()[i].grad, parameter.name);
  }
}

TEST(Transformer, BFloat16IsCloseToSinglePrecision) {
  const TrainConfig single = tiny_batch_config();
  const TrainConfig half = tiny_batch_config({"runtime.precision=BF16"});
  const TinyBatch batch(single, 5);
  TinyModel a(single);
  TinyModel b(half);
  const double exact = a.objective(dense_plan(), batch, kScale);
  EXPECT_NEAR(b.objective(dense_plan(), batch, kScale), exact, 0.02 * exact);
}

}  // namespace

}  // namespace tessera
