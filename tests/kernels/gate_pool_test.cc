#include "kernels/gate_pool.h"

#include <gtest/gtest.h>

#include <functional>

#include "tests/reference/complex_step.h"
#include "tests/reference/gate.h"
#include "tests/support/compare.h"
#include "tests/support/segments.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using reference::Complex;
using support::Segments;
using support::Tensor;

constexpr int64_t kGroups = 2;

struct Problem {
  Problem(DType type, std::vector<int64_t> lengths, int64_t block, int64_t keys_per_block,
          int64_t dim)
      : segments(lengths, block),
        gate_keys(keys_per_block),
        d(dim),
        k0(support::random_tensor(type, {kGroups, segments.tokens(), d}, 1)),
        r(support::random_tensor(DType::kF32, {kGroups, d}, 2, 0.5)) {}

  Shape keys() const { return {kGroups, segments.grid().max_blocks() * gate_keys, d}; }

  Segments segments;
  int64_t gate_keys;
  int64_t d;
  Tensor k0;
  Tensor r;
};

struct Forward {
  Tensor kbar;
  Tensor alpha;
};

Forward run_forward(Stream& stream, const Problem& p) {
  Forward out{support::filled(p.k0.dtype(), p.keys(), 77),
              support::filled(DType::kF32, {kGroups, p.segments.tokens()}, 77)};
  gate_pool_forward(stream, {.kbar = out.kbar.view(),
                             .alpha = out.alpha.view(),
                             .k0 = p.k0.view(),
                             .r = p.r.view(),
                             .grid = p.segments.grid(),
                             .gate_keys = p.gate_keys});
  return out;
}

struct Backward {
  Tensor dk0;
  Tensor dr;
};

/// dk0 starts as garbage, dr as ones.
Backward run_backward(Stream& stream, const Problem& p, const Forward& forward,
                      const Tensor& dkbar) {
  Backward out{support::filled(DType::kF32, p.k0.shape(), 77),
               support::filled(DType::kF32, p.r.shape(), 1)};
  gate_pool_backward(stream, {.dk0 = out.dk0.view(),
                              .dr = out.dr.view(),
                              .dkbar = dkbar.view(),
                              .kbar = forward.kbar.view(),
                              .alpha = forward.alpha.view(),
                              .k0 = p.k0.view(),
                              .r = p.r.view(),
                              .grid = p.segments.grid(),
                              .gate_keys = p.gate_keys});
  return out;
}

TEST(GatePool, ForwardIsTheWeightedMeanOfEveryPart) {
  Stream stream{support::device(), 2};
  for (const DType dtype : support::dtypes()) {
    for (const int64_t gate_keys : {1, 4}) {
      const Problem p(dtype, {0, 37, 0, 171, 1, 16}, 16, gate_keys, 20);
      const Forward found = run_forward(stream, p);
      const auto exact = reference::gate_pool(p.segments, support::to_doubles(p.k0),
                                              support::to_doubles(p.r), kGroups, gate_keys);
      support::expect_close(found.kbar, exact.kbar, support::tolerance(dtype), "kbar");
      support::expect_close(found.alpha, exact.alpha, support::tolerance(DType::kF32), "alpha");
      // Rows without a complete block are exactly 0: the last ones here, and the cut ends.
      for (size_t i = 0; i < exact.alpha.size(); ++i) {
        EXPECT_EQ(found.alpha.as<float>()[i] == 0, exact.alpha[i] == 0);
      }
      const std::vector<double> kbar = support::to_doubles(found.kbar);
      for (size_t i = 0; i < kbar.size(); ++i) EXPECT_EQ(kbar[i] == 0, exact.kbar[i] == 0);
    }
  }
}

TEST(GatePool, WithoutWeightsItIsTheMean) {
  Stream stream{support::device()};
  Problem p(DType::kF32, {64}, 32, 2, 16);
  std::ranges::fill(p.r.as<float>(), 0.0f);
  const Forward found = run_forward(stream, p);
  for (const float alpha : found.alpha.as<float>()) EXPECT_EQ(alpha, 1.0f / 16);
}

TEST(GatePool, LargeLogitsDoNotOverflow) {
  Stream stream{support::device()};
  Problem p(DType::kF32, {16}, 16, 1, 4);
  for (float& x : p.r.as<float>()) x *= 1e4f;
  const Forward found = run_forward(stream, p);
  double total = 0;
  for (int64_t j = 0; j < 16; ++j) total += found.alpha.as<float>()[static_cast<size_t>(j)];
  EXPECT_NEAR(total, 1, 1e-6);
}

TEST(GatePool, BackwardIsTheGradientOfForward) {
  Stream stream{support::device(), 2};
  for (const int64_t gate_keys : {1, 4}) {
    const Problem p(DType::kF32, {21, 40}, 16, gate_keys, 5);
    const Tensor dkbar = support::random_tensor(DType::kF32, p.keys(), 3);
    const Backward found = run_backward(stream, p, run_forward(stream, p), dkbar);
    const std::vector<double> weights = support::to_doubles(dkbar);
    const std::vector<double> k0 = support::to_doubles(p.k0);
    const std::vector<double> r = support::to_doubles(p.r);
    const auto dk0 = reference::complex_step_gradient(k0, [&](const std::vector<Complex>& x) {
      return reference::weighted_sum(
          weights,
          reference::gate_pool(p.segments, x, reference::as<Complex>(r), kGroups, gate_keys).kbar);
    });
    auto dr = reference::complex_step_gradient(r, [&](const std::vector<Complex>& x) {
      return reference::weighted_sum(
          weights,
          reference::gate_pool(p.segments, reference::as<Complex>(k0), x, kGroups, gate_keys).kbar);
    });
    for (double& x : dr) x += 1;  // added to
    support::expect_close(found.dk0, dk0, 1e-11, "dk0");
    support::expect_close(found.dr, dr, 1e-11, "dr");
  }
}

TEST(GatePool, BackwardReadsBf16) {
  Stream stream{support::device()};
  const Problem p(DType::kBF16, {300}, 32, 2, 20);
  const Tensor dkbar = support::random_tensor(DType::kF32, p.keys(), 3);
  const Backward found = run_backward(stream, p, run_forward(stream, p), dkbar);
  Problem exact(DType::kF32, {300}, 32, 2, 20);
  exact.k0 = support::from_doubles(DType::kF32, p.k0.shape(), support::to_doubles(p.k0));
  const Backward expected = run_backward(stream, exact, run_forward(stream, exact), dkbar);
  support::expect_close(found.dk0, support::to_doubles(expected.dk0), 1e-5, "dk0");
  support::expect_close(found.dr, support::to_doubles(expected.dr), 1e-5, "dr");
}

TEST(GatePool, ComputesOnlyWhatIsAskedFor) {
  Stream stream{support::device()};
  const Problem p(DType::kF32, {100}, 16, 1, 20);
  const Forward forward = run_forward(stream, p);
  const Tensor dkbar = support::random_tensor(DType::kF32, p.keys(), 3);
  const Backward both = run_backward(stream, p, forward, dkbar);
  const Tensor dk0(DType::kF32, p.k0.shape());
  const Tensor dr = support::filled(DType::kF32, p.r.shape(), 1);
  GatePoolBackward a{.dk0 = dk0.view(),
                     .dr = {},
                     .dkbar = dkbar.view(),
                     .kbar = forward.kbar.view(),
                     .alpha = forward.alpha.view(),
                     .k0 = p.k0.view(),
                     .r = p.r.view(),
                     .grid = p.segments.grid(),
                     .gate_keys = 1};
  gate_pool_backward(stream, a);
  support::expect_same_bits(dk0.view(), both.dk0.view(), "dk0 alone");
  a.dk0 = {};
  a.dr = dr.view();
  gate_pool_backward(stream, a);
  support::expect_same_bits(dr.view(), both.dr.view(), "dr alone");
}

TEST(GatePool, AnyNumberOfThreadsGivesTheSameBits) {
  const Problem p(DType::kF32, {900, 333}, 16, 2, 20);
  const Tensor dkbar = support::random_tensor(DType::kF32, p.keys(), 3);
  support::expect_same_on_any_threads([&](Stream& stream) {
    Forward forward = run_forward(stream, p);
    Backward backward = run_backward(stream, p, forward, dkbar);
    return support::tensors(std::move(forward.kbar), std::move(forward.alpha),
                            std::move(backward.dk0), std::move(backward.dr));
  });
}

TEST(GatePool, SaysWhatIsWrong) {
  const Problem p(DType::kF32, {40}, 16, 1, 8);
  Stream stream{support::device()};
  const Forward forward = run_forward(stream, p);
  const GatePoolForward a{.kbar = forward.kbar.view(),
                          .alpha = forward.alpha.view(),
                          .k0 = p.k0.view(),
                          .r = p.r.view(),
                          .grid = p.segments.grid(),
                          .gate_keys = 1};
  const auto expect = [&](const std::function<void(GatePoolForward&)>& change,
                          const std::string& sentence) {
    GatePoolForward wrong = a;
    change(wrong);
    support::expect_error([&] { gate_pool_forward(stream, wrong); }, sentence);
  };
  expect([](auto& x) { x.gate_keys = 3; },
         "gate_pool_forward: gate_keys is 3, expected a divisor of the block, 16");
  expect([](auto& x) { x.gate_keys = 2; },
         "gate_pool_forward: kbar is f32 [2, 3, 8], expected f32 "
         "[groups, max_blocks * gate_keys, d] = [2, 6, 8]");
  expect(
      [](auto& x) {
        x.r = support::plan_view(DType::kBF16, {2, 8});
      },
      "gate_pool_forward: r is bf16 [2, 8], expected f32 [groups, d] = [2, 8]");
  expect(
      [](auto& x) {
        x.alpha = support::plan_view(DType::kF32, {2, 41});
      },
      "gate_pool_forward: alpha is f32 [2, 41], expected f32 [groups, tokens] = [2, 40]");
  expect(
      [](auto& x) {
        x.k0 = support::plan_view(DType::kI32, {2, 40, 8});
      },
      "gate_pool_forward: k0 is i32, expected f32 or bf16");
  const Tensor dr(DType::kF32, {2, 9});
  support::expect_error(
      [&] {
        gate_pool_backward(stream, {.dk0 = {},
                                    .dr = dr.view(),
                                    .dkbar = forward.kbar.view(),
                                    .kbar = forward.kbar.view(),
                                    .alpha = forward.alpha.view(),
                                    .k0 = p.k0.view(),
                                    .r = p.r.view(),
                                    .grid = p.segments.grid(),
                                    .gate_keys = 1});
      },
      "gate_pool_backward: dr is f32 [2, 9], expected f32 [groups, d] = [2, 8]");
}

}  // namespace
}  // namespace tessera
