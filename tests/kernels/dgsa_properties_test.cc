// What the kernels of DGSA are together: the properties of the definition, checked on them. The
// number in a test's name is that of the property in docs/dgsa.md.

#include <gtest/gtest.h>

#include "kernels/attention.h"
#include "tests/reference/complex_step.h"
#include "tests/reference/dgsa.h"
#include "tests/support/compare.h"
#include "tests/support/dgsa_layer.h"

namespace tessera {
namespace {

using reference::Complex;
using reference::Dgsa;
using support::DgsaLayer;
using support::Tensor;

constexpr float kStrongest = 1 - 0x1p-10f;

std::vector<std::vector<double>> inputs_of(const DgsaLayer& layer) {
  std::vector<std::vector<double>> in;
  for (const Tensor& x : layer.in) in.push_back(support::to_doubles(x));
  return in;
}

/// Full causal attention by its own kernel, on the layer's queries and keys.
Tensor full_attention(Stream& stream, const DgsaLayer& layer) {
  Tensor o(DType::kF32, layer.o.shape());
  const Tensor lse(DType::kF32, layer.lse.shape());
  const std::vector<int32_t> groups{0};
  attention_forward(stream, {.o = o.view(),
                             .lse = lse.view(),
                             .q = layer.q.view(),
                             .k = layer.k.view(),
                             .v = layer.in[DgsaLayer::kV].view(),
                             .grid = layer.segments.grid(),
                             .groups = groups,
                             .window = layer.c.tokens,
                             .sink_tokens = 0,
                             .scale = layer.scale(),
                             .sink_logits = layer.sink_logits()});
  return o;
}

TEST(DgsaProperties, P1AtSparsityZeroItIsFullCausalAttention) {
  Stream stream{support::device(), 2};
  for (const float strength : {0.0f, 0.5f, kStrongest}) {
    DgsaLayer::Config config;
    config.strength = strength;
    config.rule.kept = 100;
    DgsaLayer layer(config, 1);
    layer.forward(stream);
    const Tensor full = full_attention(stream, layer);
    support::expect_close(layer.o.view(), support::to_doubles(full), 1e-12, "against the kernel");
    const auto everything = [](int64_t, int64_t, int64_t) { return std::optional<double>(0); };
    const Dgsa<double> exact(layer, inputs_of(layer));
    const auto full_exact = reference::attention(layer.segments, exact.shape, exact.x, everything);
    support::expect_close(full.view(), full_exact.o, 1e-11, "the kernel itself");
  }
}

/// The gradient along several random directions per input: every element takes part in each.
void expect_gradients(const DgsaLayer::Config& config) {
  Stream stream{support::device(), 2};
  DgsaLayer layer(config, 3);
  layer.forward(stream);
  const Tensor d_o = support::random_tensor(DType::kF32, layer.o.shape(), 9);
  layer.backward(stream, d_o);
  const std::vector<double> weights = support::to_doubles(d_o);
  const auto in = inputs_of(layer);
  // The targets of the KL loss are constants.
  const Dgsa<double> exact(layer, in);
  std::vector<std::vector<double>> targets;
  for (int64_t i = 0; i < config.tokens; ++i) {
    const int64_t count = layer.selection.count(0, i);
    std::vector<double> lse;
    for (int64_t h = 0; h < config.heads; ++h) {
      for (int64_t s = 0; s < count; ++s) {
        lse.push_back(
            exact.block_lse(h, i, layer.selection.row_of_blocks(0, i)[static_cast<size_t>(s)]));
      }
    }
    targets.push_back(count == 0 ? std::vector<double>{} : reference::gate_target(lse, count));
  }
  constexpr double kStep = 1e-50;
  for (size_t input = 0; input < DgsaLayer::kInputs; ++input) {
    const std::vector<double> found = support::to_doubles(layer.gradients[input]);
    const double norm = std::sqrt(reference::dot(found, found));
    // Without a ramp only the losses teach the gate, and the width is in none of them.
    EXPECT_EQ(norm > 0, config.strength > 0 || input != DgsaLayer::kWidth) << "input " << input;
    for (uint64_t direction = 0; direction < 3; ++direction) {
      std::vector<std::vector<Complex>> moved;
      for (const auto& values : in) moved.emplace_back(values.begin(), values.end());
      const std::vector<double> along = support::to_doubles(
          support::random_tensor(DType::kF32, layer.in[input].shape(), 50 + direction));
      for (size_t i = 0; i < along.size(); ++i) moved[input][i].imag(kStep * along[i]);
      const double slope = Dgsa<Complex>(layer, moved).loss(weights, targets).imag() / kStep;
      EXPECT_NEAR(reference::dot(found, along), slope, 1e-5 * norm) << "input " << input;
    }
  }
}

TEST(DgsaProperties, P2BackwardIsTheGradientWithoutRamp) {
  DgsaLayer::Config config;
  config.strength = 0;
  expect_gradients(config);
}
TEST(DgsaProperties, P2BackwardIsTheGradientOnAWeakRamp) {
  DgsaLayer::Config config;
  config.strength = 0.3f;
  expect_gradients(config);
}
TEST(DgsaProperties, P2BackwardIsTheGradientOnARamp) {
  expect_gradients({});
}
TEST(DgsaProperties, P2BackwardIsTheGradientOnTheSteepestRamp) {
  DgsaLayer::Config config;
  config.strength = kStrongest;
  expect_gradients(config);
}
TEST(DgsaProperties, P2BackwardIsTheGradientWithSeveralGateKeys) {
  DgsaLayer::Config config;
  config.gate_keys = 4;
  expect_gradients(config);
}

/// Changes queries, keys and values of one token.
void perturb(DgsaLayer& layer, int64_t token) {
  for (const auto input : {DgsaLayer::kQ0, DgsaLayer::kK0, DgsaLayer::kV}) {
    const auto x = layer.in[input].as<float>();
    const size_t width = x.size() / static_cast<size_t>(layer.c.tokens);
    for (size_t e = 0; e < width; ++e) {
      const auto words = philox(77, static_cast<uint64_t>(input), e);
      x[static_cast<size_t>(token) * width + e] +=
          static_cast<float>(3 * normal(words[0], words[1]));
    }
  }
}

/// How many tokens change something before them when they change.
int64_t leaking_tokens(const DgsaLayer::Config& config) {
  Stream stream{support::device(), 2};
  DgsaLayer before(config, 5);
  before.forward(stream);
  int64_t leaks = 0;
  for (int64_t token = 0; token < config.tokens; ++token) {
    DgsaLayer after(config, 5);
    perturb(after, token);
    after.forward(stream);
    const auto row = static_cast<size_t>(config.heads * config.d);
    const auto earlier = static_cast<size_t>(token) * row;
    const auto old_o = before.o.as<float>();
    const auto new_o = after.o.as<float>();
    leaks +=
        !std::equal(old_o.begin(), old_o.begin() + static_cast<int64_t>(earlier), new_o.begin());
    EXPECT_NE(old_o[earlier], new_o[earlier]) << "token " << token << " changes itself";
  }
  return leaks;
}

TEST(DgsaProperties, P4aNoOutputDependsOnALaterToken) {
  EXPECT_EQ(leaking_tokens({}), 0);
}

TEST(DgsaProperties, P4bAGateQueryPerTileWouldLeak) {
  DgsaLayer::Config config;
  config.pool_queries = true;
  EXPECT_GT(leaking_tokens(config), 5);
}

TEST(DgsaProperties, P5SwappingTheLastTwoBlocksMovesTheOutputByAlmostNothing) {
  Stream stream{support::device()};
  std::vector<double> jumps;
  for (const float strength : {0.0f, 0.5f, kStrongest}) {
    DgsaLayer::Config config;
    config.tokens = 128;
    config.rule = {.sink_blocks = 1, .window_blocks = 1, .kept = 1};
    config.strength = strength;
    DgsaLayer layer(config, 7);
    layer.forward(stream);
    const auto blocks = layer.selection.row_of_blocks(0, 127);
    const auto scores = layer.selection.row_of_scores(0, 127);
    scores[0] = scores[1] + 1e-6f;  // the chosen block and the runner-up, about to swap
    layer.attend(stream);
    const Tensor before = support::copy_of(layer.o.view());
    std::swap(blocks[0], blocks[1]);
    layer.attend(stream);
    double jump = 0;
    for (size_t i = 127 * 16; i < 128 * 16; ++i) {
      jump = std::max<double>(jump, std::abs(before.as<float>()[i] - layer.o.as<float>()[i]));
    }
    jumps.push_back(jump);
  }
  EXPECT_GT(jumps[0], 1e-2);  // a hard mask jumps
  EXPECT_LT(jumps[1], jumps[0]);
  EXPECT_LT(jumps[2], 2e-3);  // about 2^-10 of a block's weight
}

}  // namespace
}  // namespace tessera
