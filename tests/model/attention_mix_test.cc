#include <gtest/gtest.h>

#include <cmath>

#include "tests/model/tiny_model.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

using support::elements;
using support::Tensor;
using support::tiny_batch_config;
using support::TinyBatch;
using support::TinyModel;

constexpr float kScale = 1.0f / 200;
constexpr int64_t kWindow = 24;
const Shape kShape{2, 2};  // layers, groups: the first is global, the second local

/// A tiny model whose groups attend to everything and to a window.
class AttentionMix : public testing::Test {
 protected:
  void set_shares(const std::vector<double>& values) {
    support::set_elements(shares_.view(), std::vector<float>(values.begin(), values.end()));
  }
  Transformer::Run run(int64_t window, bool mixed) {
    Transformer::Run run = tiny_.run({.window = window});
    if (mixed) run.mix = &mix_;
    return run;
  }
  double objective(int64_t window = 112, bool mixed = true) {
    Transformer::Run now = run(window, mixed);
    tiny_.model.forward(now, batch_.view());
    return tiny_.loss() * kScale + tiny_.auxiliary();
  }
  std::vector<float> gradients(int64_t window = 112, bool mixed = true) {
    tiny_.store.zero_gradients(tiny_.stream);
    support::set_elements(slopes_.view(), std::vector<double>(4));
    Transformer::Run now = run(window, mixed);
    tiny_.model.forward_backward(now, batch_.view(), kScale);
    return elements<float>(tiny_.store.gradients());
  }

  // With every expert chosen the objective has no jumps. Tokens that know those before them need
  // attention less, and the slopes of the shares are smaller.
  const TrainConfig config_ =
      tiny_batch_config({"model.moe.experts_per_token=4", "model.smear_tokens=0"});
  const TinyBatch batch_{config_, 5};
  TinyModel tiny_{config_};
  Tensor shares_{DType::kF32, kShape};
  Tensor slopes_{DType::kF64, kShape};
  GroupMix mix_{.window = kWindow, .shares = shares_, .slopes = slopes_};
};

TEST_F(AttentionMix, SharesOfOneAreThePlanAndOfZeroTheWindow) {
  set_shares({1, 1, 1, 1});
  const std::vector<float> full = gradients();
  EXPECT_EQ(full, gradients(112, false));
  set_shares({0, 0, 0, 0});
  const std::vector<float> windowed = gradients();
  EXPECT_EQ(windowed, gradients(kWindow, false));
  EXPECT_NE(windowed, full);
  EXPECT_EQ(objective(), objective(kWindow, false));
}

TEST_F(AttentionMix, SlopeOfEachShareIsThatOfTheLoss) {
  const std::vector<double> at{0.7, 0.4, 0.2, 0.9};
  set_shares(at);
  gradients();
  const std::vector<double> slopes = elements<double>(slopes_.view());
  // The loss, of f32 logits, is right to about 1e-7 of itself, 4 nats: over 2 h to 1e-5. The curve
  // of h^2 is below that. A wrong sign or a share of the other group is 1e-2 and more away.
  constexpr double kStep = 0.02;
  for (size_t i = 0; i < at.size(); i += support::takes_less() ? 3 : 1) {
    const auto moved = [&](double by) {
      std::vector<double> shares = at;
      shares[i] += by;
      set_shares(shares);
      return objective();
    };
    const double slope = (moved(kStep) - moved(-kStep)) / (2 * kStep);
    EXPECT_NEAR(slopes[i], slope, 0.01 * std::abs(slope) + 2e-5) << i;
    EXPECT_GT(std::abs(slope), 1e-3) << i;
  }
}

TEST_F(AttentionMix, GradientsFlowThroughBothWaysToAttend) {
  set_shares({0.7, 0.4, 0.2, 0.9});
  gradients();
  for (const std::string& name : support::fewer<std::string>(
           {"embedding.weight", "layers.0.attention.query.weight",
            "layers.0.attention.value.weight", "layers.1.attention.key.weight",
            "layers.1.attention.sink_logit"})) {
    Parameter& parameter = tiny_.store.find(name);
    const std::vector<float> before = elements<float>(parameter.value);
    const std::vector<float> gradient = elements<float>(parameter.grad);
    double norm = 0;
    for (const float g : gradient) norm += static_cast<double>(g) * g;
    norm = std::sqrt(norm);
    const double step = 2e-3 / std::max(1.0, norm);
    const auto moved = [&](double by) {
      std::vector<float> value = before;
      for (size_t i = 0; i < value.size(); ++i) {
        value[i] += static_cast<float>(by * gradient[i] / norm);
      }
      support::set_elements(parameter.value, value);
      const double found = objective();
      support::set_elements(parameter.value, before);
      return found;
    };
    EXPECT_NEAR((moved(step) - moved(-step)) / (2 * step), norm, 0.03 * norm + 2e-3) << name;
  }
}

TEST_F(AttentionMix, IsForStepsWhoseGatesRest) {
  set_shares({1, 1, 1, 1});
  Transformer::Run gated = tiny_.run(support::tiny_plan());
  gated.mix = &mix_;
  support::expect_error([&] { tiny_.model.forward(gated, batch_.view()); },
                        "attention: groups are mixed in a step that chooses blocks");
}

}  // namespace
}  // namespace tessera
