#include "kernels/adamw.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/core/stochastic_rounding.h"
#include "tests/support/compare.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using support::plan_view;
using support::random_tensor;
using support::Tensor;
using support::to_doubles;

constexpr float kRate = 0.01f;
constexpr float kBeta1 = 0.9f;
constexpr float kBeta2 = 0.95f;
constexpr float kEpsilon = 1e-3f;  // large, so that its place in the formula is seen
constexpr float kDecay = 0.1f;
constexpr float kScale = 0.25f;

/// The tensors of one parameter.
struct State {
  Tensor value;
  Tensor master;
  Tensor m;
  Tensor v;
};

State start(DType dtype, Shape shape) {
  State state{Tensor(dtype, shape), random_tensor(DType::kF32, shape, 1),
              random_tensor(DType::kF32, shape, 2, 0.1), Tensor(DType::kF32, shape)};
  for (float& v : state.v.as<float>()) v = 0.01f;
  return state;
}

void step(Stream& stream, const State& state, const Tensor& value, const Tensor& gradient,
          int64_t t) {
  adamw(stream, {.value = value,
                 .master = state.master,
                 .m = state.m,
                 .v = state.v,
                 .gradient = gradient,
                 .step = t,
                 .rate = kRate,
                 .beta1 = kBeta1,
                 .beta2 = kBeta2,
                 .epsilon = kEpsilon,
                 .decay = kDecay,
                 .gradient_scale = kScale});
}

TEST(AdamW, MatchesTheFormulaOverSteps) {
  Stream stream{support::device(), 2};
  for (const DType dtype : support::dtypes()) {
    const Shape shape{7, 31};
    const State state = start(dtype, shape);
    std::vector<double> w = to_doubles(state.master);
    std::vector<double> m = to_doubles(state.m);
    std::vector<double> v = to_doubles(state.v);
    for (int64_t t = 1; t <= 4; ++t) {
      const Tensor gradient = random_tensor(DType::kF32, shape, 10 + static_cast<uint64_t>(t));
      step(stream, state, state.value, gradient, t);
      for (size_t i = 0; i < w.size(); ++i) {
        const double g = double{kScale} * gradient.as<float>()[i];
        m[i] = double{kBeta1} * m[i] + (1 - double{kBeta1}) * g;
        v[i] = double{kBeta2} * v[i] + (1 - double{kBeta2}) * g * g;
        const double mean = m[i] / (1 - std::pow(double{kBeta1}, static_cast<double>(t)));
        const double square = v[i] / (1 - std::pow(double{kBeta2}, static_cast<double>(t)));
        w[i] -= double{kRate} * (mean / (std::sqrt(square) + double{kEpsilon}) + kDecay * w[i]);
      }
      SCOPED_TRACE(concat(name_of(dtype), " step ", t));
      support::expect_close(state.master, w, 1e-13, "master");
      support::expect_close(state.m, m, 1e-12, "m");
      support::expect_close(state.v, v, 1e-12, "v");
      support::expect_same_bits(
          state.value, support::from_doubles(dtype, shape, to_doubles(state.master)), "value");
    }
  }
}

TEST(AdamW, ValueMayBeTheMasterItself) {
  Stream stream{support::device()};
  const Tensor gradient = random_tensor(DType::kF32, {50}, 3);
  const State apart = start(DType::kF32, {50});
  step(stream, apart, apart.value, gradient, 1);
  const State aliased = start(DType::kF32, {50});
  step(stream, aliased, aliased.master, gradient, 1);
  support::expect_same_bits(aliased.master, apart.master, "master");
}

TEST(AdamW, GivesTheSameBitsOnAnyNumberOfThreads) {
  const Tensor gradient = random_tensor(DType::kF32, {100'003}, 4);
  support::expect_same_on_any_threads([&](Stream& stream) {
    State state = start(DType::kBF16, {100'003});
    step(stream, state, state.value, gradient, 3);
    return support::tensors(std::move(state.value), std::move(state.master), std::move(state.m),
                            std::move(state.v));
  });
}

AdamW with(const State& state, const Tensor& gradient, float rate, AdamW::Rounding rounding) {
  return {.value = state.value,
          .master = state.master,
          .m = state.m,
          .v = state.v,
          .gradient = gradient,
          .step = 5,
          .rate = rate,
          .beta1 = kBeta1,
          .beta2 = kBeta2,
          .epsilon = kEpsilon,
          .decay = kDecay,
          .gradient_scale = kScale,
          .rounding = rounding};
}

TEST(AdamW, RoundsStochasticallyByElementAndTheSameOnBothDevices) {
  constexpr AdamW::Rounding kRounding{.stochastic = true, .seed = 77, .first_index = 13};
  for (const int64_t count : {1, 1024, 3001}) {
    const Tensor gradient = random_tensor(DType::kF32, {count}, 5);
    for (const float rate : {0.0f, kRate}) {
      const State state = start(DType::kBF16, {count});
      Stream stream{support::device(), 2};
      adamw(stream, with(state, gradient, rate, kRounding));
      for (int64_t i = 0; i < count; ++i) {
        const auto at = static_cast<size_t>(i);
        const uint32_t random = RoundingBits(77, 5, 13 + i).of(13 + i);
        ASSERT_EQ(state.value.as<BF16>()[at].bits,
                  round_stochastically(state.master.as<float>()[at], random).bits)
            << i << " of " << count;
      }
      if (rate != 0) continue;
      const State on_cpu = start(DType::kBF16, {count});
      Stream cpu_stream{Device{}, 3};
      adamw(cpu_stream, with(on_cpu, gradient, rate, kRounding));
      support::expect_same_bits(state.value, on_cpu.value, "value");
    }
  }
}

TEST(AdamW, StochasticRoundingKeepsTheMean) {
  constexpr int64_t kCount = 40'000;
  const State state = start(DType::kBF16, {kCount});
  for (float& x : state.master.as<float>()) x = 1.0009f;  // bf16 has 1 and 1.0078125
  const Tensor gradient(DType::kF32, {kCount});
  Stream stream{support::device(), 2};
  adamw(stream, with(state, gradient, 0, {.stochastic = true, .seed = 3}));
  double mean = 0;
  for (const double x : to_doubles(state.value)) mean += x / kCount;
  EXPECT_NEAR(mean, 1.0009, 5 * 0.0078125 / 2 / std::sqrt(kCount));
}

// More tensors than one launch takes, of lengths that are no packs, some of them empty.
TEST(AdamW, ManyTensorsAreUpdatedAsOneByOne) {
  Stream stream{support::device(), 2};
  std::vector<State> together;
  std::vector<State> alone;
  std::vector<Tensor> gradients;
  for (int64_t i = 0; i < 61; ++i) {
    const DType dtype = i % 3 == 0 ? DType::kBF16 : DType::kF32;
    const Shape shape{i % 7 == 0 ? 1030 * (i % 4) : i % 5};
    together.push_back(start(dtype, shape));
    alone.push_back(start(dtype, shape));
    gradients.push_back(random_tensor(DType::kF32, shape, 20 + static_cast<uint64_t>(i)));
  }
  std::vector<AdamW> updates;
  for (size_t i = 0; i < together.size(); ++i) {
    const float rate = 0.001f * static_cast<float>(i);
    updates.push_back(with(together[i], gradients[i], rate, {.stochastic = i % 2 == 0}));
    adamw(stream, with(alone[i], gradients[i], rate, {.stochastic = i % 2 == 0}));
  }
  adamw(stream, updates);
  for (size_t i = 0; i < together.size(); ++i) {
    SCOPED_TRACE(i);
    support::expect_same_bits(together[i].value, alone[i].value, "value");
    support::expect_same_bits(together[i].master, alone[i].master, "master");
    support::expect_same_bits(together[i].m, alone[i].m, "m");
    support::expect_same_bits(together[i].v, alone[i].v, "v");
  }
}

TEST(AdamW, SaysWhatIsWrong) {
  Stream stream(Device{DeviceKind::kPlan});
  const TensorView x = plan_view(DType::kF32, {4, 8});
  AdamW a{.value = x,
          .master = x,
          .m = x,
          .v = x,
          .gradient = plan_view(DType::kBF16, {4, 8}),
          .step = 1,
          .rate = 0,
          .beta1 = 0.9f,
          .beta2 = 0.95f,
          .epsilon = 1e-8f,
          .decay = 0,
          .gradient_scale = 1};
  support::expect_error(
      [&] { adamw(stream, a); },
      "adamw: gradient is bf16 [4, 8], expected f32 the shape of master = [4, 8]");
  a.gradient = x;
  a.step = 0;
  support::expect_error([&] { adamw(stream, a); }, "adamw: step is 0, expected at least 1");
}

}  // namespace
}  // namespace tessera
