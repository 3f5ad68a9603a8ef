#include "kernels/adamw.h"

#include <gtest/gtest.h>

#include <cmath>

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
