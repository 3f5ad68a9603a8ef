#include <gtest/gtest.h>

#include "kernels/block_selection.h"
#include "kernels/gate_backward.h"
#include "kernels/gate_loss.h"
#include "kernels/gate_pool.h"
#include "tests/reference/complex_step.h"
#include "tests/reference/gate.h"
#include "tests/support/compare.h"
#include "tests/support/selection.h"

namespace tessera {
namespace {

using reference::Complex;
using support::Segments;
using support::Selection;
using support::Tensor;

constexpr int64_t kQueryDim = 6;  // all heads of the group
constexpr int64_t kDim = 4;
constexpr int64_t kGateDim = 5;
constexpr int64_t kHeads = 2;
constexpr double kStrength = 0.75;
constexpr BlockRule kRule{.sink_blocks = 1, .window_blocks = 1, .kept = 2};
const std::vector<double> kCoefficients{0.3, 0.05, 0.01};

/// The inputs of one group's gate, all differentiable: q0, k0, W_q, W_k, r, w, end to end.
enum Input { kQ0, kK0, kQueryWeight, kKeyWeight, kPool, kWidth, kInputs };

template <class T>
using Values = std::vector<std::vector<T>>;

/// a [m, k] times the transpose of b [n, k].
template <class T>
std::vector<T> times_transposed(const std::vector<T>& a, const std::vector<T>& b, int64_t k) {
  std::vector<T> c;
  for (int64_t i = 0; i < static_cast<int64_t>(a.size()) / k; ++i) {
    for (int64_t j = 0; j < static_cast<int64_t>(b.size()) / k; ++j) {
      c.push_back(reference::dot(reference::row_of(a, i, k), reference::row_of(b, j, k)));
    }
  }
  return c;
}

std::vector<float> transposed(const std::vector<float>& a, int64_t columns) {
  const int64_t rows = static_cast<int64_t>(a.size()) / columns;
  std::vector<float> b(a.size());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      b[static_cast<size_t>(j * rows + i)] = a[static_cast<size_t>(i * columns + j)];
    }
  }
  return b;
}

std::vector<float> floats(const Tensor& x) {
  return {x.as<float>().begin(), x.as<float>().end()};
}

Tensor tensor(const std::vector<float>& values, Shape shape) {
  return support::from_doubles(DType::kF32, shape,
                               std::vector<double>(values.begin(), values.end()));
}

struct Problem {
  explicit Problem(int64_t keys_per_block)
      : gate_keys(keys_per_block),
        dlog_gate(support::random_tensor(DType::kF32, {1, segments.tokens(), kRule.kept}, 7)),
        block_lse(
            support::random_tensor(DType::kF32, {1, segments.tokens(), kHeads, kRule.kept}, 8)) {
    const auto random = [](Shape shape, uint64_t seed, double scale) {
      return floats(support::random_tensor(DType::kF32, shape, seed, scale));
    };
    in = {random({segments.tokens(), kQueryDim}, 1, 1),
          random({segments.tokens(), kDim}, 2, 1),
          random({kGateDim, kQueryDim}, 3, 0.3),
          random({kGateDim, kDim}, 4, 0.6),
          random({kDim}, 5, 0.5),
          {0.9f}};
  }
  int64_t keys() const { return segments.grid().max_blocks() * gate_keys; }

  Segments segments{{37, 100}, 16};
  int64_t gate_keys;
  Tensor dlog_gate;
  Tensor block_lse;
  Values<float> in;
};

/// What the kernels and plain products make of it.
struct Chain {
  Selection selection;
  Values<float> gradients;
};

Chain run_kernels(Stream& stream, const Problem& p) {
  const SegmentGrid& grid = p.segments.grid();
  const int64_t tokens = p.segments.tokens();
  const Tensor k0 = tensor(p.in[kK0], {1, tokens, kDim});
  const Tensor r = tensor(p.in[kPool], {1, kDim});
  const Tensor width = tensor(p.in[kWidth], {1});
  const Tensor kbar(DType::kF32, {1, p.keys(), kDim});
  const Tensor alpha(DType::kF32, {1, tokens});
  gate_pool_forward(stream, {kbar.view(), alpha.view(), k0.view(), r.view(), grid, p.gate_keys});
  const Tensor qt =
      tensor(times_transposed(p.in[kQ0], p.in[kQueryWeight], kQueryDim), {1, tokens, kGateDim});
  const Tensor kt =
      tensor(times_transposed(floats(kbar), p.in[kKeyWeight], kDim), {1, p.keys(), kGateDim});
  Chain out{Selection(1, tokens, kRule.kept), Values<float>(kInputs)};
  score_select(stream, {out.selection.view(), qt.view(), kt.view(), grid, kRule, p.gate_keys});

  const Tensor losses(DType::kF32, {3});
  const Tensor dscores(DType::kF32, {1, tokens, kRule.kept + 1});
  const Tensor dwidths(DType::kF32, {1});
  gate_loss(stream, {losses.view(), dscores.view(), out.selection.view(), p.block_lse.view(),
                     static_cast<float>(kCoefficients[0]), static_cast<float>(kCoefficients[1]),
                     static_cast<float>(kCoefficients[2])});
  ramp_backward(stream, {dscores.view(),
                         dwidths.view(),
                         p.dlog_gate.view(),
                         out.selection.view(),
                         {.strength = kStrength, .widths = width.view()}});
  const Tensor dqt(DType::kF32, qt.shape());
  const Tensor dkt(DType::kF32, kt.shape());
  score_backward(stream, {dqt.view(), dkt.view(), dscores.view(), out.selection.view(), qt.view(),
                          kt.view(), grid, p.gate_keys});
  const std::vector<float> dqt_t = transposed(floats(dqt), kGateDim);
  const std::vector<float> dkt_t = transposed(floats(dkt), kGateDim);
  const Tensor dkbar = tensor(
      times_transposed(floats(dkt), transposed(p.in[kKeyWeight], kDim), kGateDim), kbar.shape());
  const Tensor dk0(DType::kF32, k0.shape());
  const Tensor dr(DType::kF32, r.shape());
  gate_pool_backward(stream, {dk0.view(), dr.view(), dkbar.view(), kbar.view(), alpha.view(),
                              k0.view(), r.view(), grid, p.gate_keys});
  out.gradients[kQ0] =
      times_transposed(floats(dqt), transposed(p.in[kQueryWeight], kQueryDim), kGateDim);
  out.gradients[kK0] = floats(dk0);
  out.gradients[kQueryWeight] = times_transposed(dqt_t, transposed(p.in[kQ0], kQueryDim), tokens);
  out.gradients[kKeyWeight] = times_transposed(dkt_t, transposed(floats(kbar), kDim), p.keys());
  out.gradients[kPool] = floats(dr);
  out.gradients[kWidth] = floats(dwidths);
  return out;
}

/// sum dlog_gate * log G + the auxiliary losses, with the given choices held.
Complex loss(const Problem& p, const Selection& selection, const Values<Complex>& in) {
  const auto pooled = reference::gate_pool(p.segments, in[kK0], in[kPool], 1, p.gate_keys);
  const auto qt = times_transposed(in[kQ0], in[kQueryWeight], kQueryDim);
  const auto kt = times_transposed(pooled.kbar, in[kKeyWeight], kDim);
  const std::vector<double> dlog_gate = support::to_doubles(p.dlog_gate);
  const std::vector<double> all_lse = support::to_doubles(p.block_lse);
  Complex sum = 0;
  for (int64_t i = 0; i < p.segments.tokens(); ++i) {
    const int64_t count = selection.count(0, i);
    if (count == 0) continue;
    const auto blocks = selection.row_of_blocks(0, i);
    const auto all = reference::gate_scores(p.segments, qt, kt, 0, i, kGateDim, p.gate_keys);
    std::vector<Complex> z;
    for (int64_t s = 0; s < count; ++s)
      z.push_back(all[static_cast<size_t>(blocks[static_cast<size_t>(s)])]);
    if (blocks.back() >= 0) {
      sum +=
          reference::weighted_sum(reference::row_of(dlog_gate, i, kRule.kept),
                                  reference::log_gates(z, all[static_cast<size_t>(blocks.back())],
                                                       kStrength, in[kWidth][0]));
    }
    if (count < 2) continue;
    std::vector<double> lse;
    for (int64_t h = 0; h < kHeads; ++h) {
      const auto of_head = reference::row_of(all_lse, i * kHeads + h, kRule.kept);
      lse.insert(lse.end(), of_head.begin(), of_head.begin() + count);
    }
    sum += reference::weighted_sum(kCoefficients,
                                   reference::gate_losses(z, reference::gate_target(lse, count)));
  }
  return sum;
}

TEST(GateChain, BackwardIsTheGradientFromQueriesKeysAndAllParameters) {
  Stream stream{support::device(), 2};
  const std::vector<std::string> names{"q0", "k0", "W_q", "W_k", "r", "w"};
  for (const int64_t gate_keys : {1, 4}) {
    const Problem p(gate_keys);
    const Chain chain = run_kernels(stream, p);
    Values<Complex> in;
    for (const auto& values : p.in) in.emplace_back(values.begin(), values.end());
    for (size_t input = 0; input < kInputs; ++input) {
      const std::vector<double> at(p.in[input].begin(), p.in[input].end());
      const auto gradient =
          reference::complex_step_gradient(at, [&](const std::vector<Complex>& x) {
            Values<Complex> changed = in;
            changed[input] = x;
            return loss(p, chain.selection, changed);
          });
      const auto& found = chain.gradients[input];
      support::expect_close(std::vector<double>(found.begin(), found.end()), gradient, 1e-10,
                            concat(names[input], " with ", gate_keys, " gate keys"));
      EXPECT_GT(std::abs(reference::dot(gradient, gradient)), 1e-6) << names[input];
    }
  }
}

}  // namespace
}  // namespace tessera
