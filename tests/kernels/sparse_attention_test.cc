#include "kernels/sparse_attention.h"

#include <gtest/gtest.h>

#include "tests/reference/complex_step.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"
#include "tests/support/sparse_case.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using reference::Attended;
using reference::AttentionInput;
using reference::Complex;
using support::Sparse;
using support::SparseCase;
using support::Tensor;

constexpr double kAlmostOne = 1 - 0x1p-10;

std::vector<SparseCase> cases() {
  return {
      {{180, 0, 1, 33}, 16, 4, 1, 16, {1, 2, 3}, 0.7, true},
      {{230, 70}, 32, 4, 2, 24, {0, 1, 2}, kAlmostOne, false},
      {{270}, 64, 2, 1, 64, {1, 1, 2}, 0.5, true},
      {{560, 40}, 128, 2, 1, 16, {1, 1, 1}, 0.9, false},
      {{410}, 80, 3, 1, 8, {0, 2, 2}, 0.9, true},
      {{105}, 16, 16, 1, 72, {2, 1, 3}, 0, true},
      {{90}, 16, 1, 1, 256, {1, 1, 2}, 0.9, false},
      {{150}, 16, 3, 1, 8, {1, 1, 20}, 0.9, false},
  };
}

/// bf16 rounds the weights and their gradients too, besides the results.
double tolerance_of(DType dtype) {
  return dtype == DType::kBF16 ? 2e-5 : 1e-11;
}

void expect_definition(const SparseCase& c) {
  const Sparse x(c);
  x.run();
  const Attended attended = x.attended();
  const auto gates = attended.flat_gates<double>();
  const auto input = x.input<double>();
  const auto gate = attended.log_gate(gates);
  const auto expected = reference::attention(x.segments, x.shape, input, gate);
  const auto gradient =
      reference::attention_gradient(x.segments, x.shape, input, support::to_doubles(x.d_o), gate);
  const std::string which = concat(name_of(c.dtype), " d ", c.d, " block ", c.block, ": ");
  const double tolerance = tolerance_of(c.dtype);
  support::expect_close(x.o, expected.o, tolerance, which + "o");
  support::expect_close(x.lse, expected.lse, 1e-12, which + "lse");
  support::expect_close(x.block_lse, expected_block_lse(x, attended), 1e-12, which + "block_lse");
  support::expect_close(x.dq, gradient.dq, 2 * tolerance, which + "dq");
  support::expect_close(x.dk, gradient.dk, 2 * tolerance, which + "dk");
  support::expect_close(x.dv, gradient.dv, tolerance, which + "dv");
  support::expect_close(x.dlog_gate, expected_dlog_gate(x, attended, gradient), 2 * tolerance,
                        which + "dlog_gate");
  if (c.sink_logits) {
    support::expect_close(x.added_to_sink_logits(), gradient.dsink_logits, 5 * tolerance,
                          which + "dsink_logits");
  }
}

TEST(SparseAttention, AgreesWithTheDefinition) {
  for (const SparseCase& c : cases()) expect_definition(c);
}

TEST(SparseAttention, AgreesWithTheDefinitionInBf16) {
  for (SparseCase c : cases()) {
    c.dtype = DType::kBF16;
    expect_definition(c);
  }
}

// Heads of 64 and 128 numbers in groups of 4 and 8: what kernels for one kind of GPU take. Blocks
// with several turns of their rings, and of two panels.
TEST(SparseAttention, AgreesWithTheDefinitionInWholeGroups) {
  for (const SparseCase& c :
       {SparseCase{{300, 70}, 64, 4, 1, 128, {1, 1, 2}, 0.7, true, DType::kBF16},
        SparseCase{{270}, 128, 16, 2, 64, {0, 1, 1}, 0.9, false, DType::kBF16}}) {
    expect_definition(c);
  }
}

TEST(SparseAttention, BackwardIsTheGradientOfForward) {
  const Sparse x({{67}, 16, 2, 1, 8, {0, 1, 2}, 0.7, true});
  x.run();
  const Attended attended = x.attended();
  const auto gates = attended.flat_gates<Complex>();
  const auto weights = support::to_doubles(x.d_o);
  const auto loss = [&](const AttentionInput<Complex>& input, const std::vector<Complex>& g) {
    return reference::weighted_sum(
        weights, reference::attention(x.segments, x.shape, input, attended.log_gate(g)).o);
  };
  const auto gradient_of = [&](std::vector<Complex> AttentionInput<Complex>::*member,
                               const Tensor& tensor) {
    AttentionInput<Complex> input = x.input<Complex>();
    return reference::complex_step_gradient(support::to_doubles(tensor),
                                            [&](const std::vector<Complex>& changed) {
                                              input.*member = changed;
                                              return loss(input, gates);
                                            });
  };
  support::expect_close(x.dq, gradient_of(&AttentionInput<Complex>::q, x.q), 1e-11, "dq");
  support::expect_close(x.dk, gradient_of(&AttentionInput<Complex>::k, x.k), 1e-11, "dk");
  support::expect_close(x.dv, gradient_of(&AttentionInput<Complex>::v, x.v), 1e-11, "dv");
  support::expect_close(x.added_to_sink_logits(),
                        gradient_of(&AttentionInput<Complex>::sink_logits, x.sink_logits), 1e-11,
                        "dsink_logits");
  const auto by_gate = reference::complex_step_gradient(
      attended.flat_gates<double>(),
      [&](const std::vector<Complex>& changed) { return loss(x.input<Complex>(), changed); });
  support::expect_close(x.dlog_gate, by_gate, 1e-11, "dlog_gate");
}

TEST(SparseAttention, SaysWhatIsWrong) {
  const Sparse x({{100}, 16, 2, 1, 16, {1, 1, 3}, 0.5, true});
  const Attended attended = x.attended();
  const support::Selection owner = reference::selection_of(x.scores, attended);
  const BlockSelection selection = owner.view();
  const reference::Lists list_owner(x.scores, attended);
  const BlockLists lists = list_owner.view();
  Stream stream(Device{DeviceKind::kPlan});
  const auto forward = [&](const auto& change) {
    SparseAttentionForward a = x.forward(selection, lists);
    change(a);
    sparse_attention_forward(stream, a);
  };
  support::expect_error([&] { forward([](auto& a) { a.rule.kept = 4; }); },
                        "sparse_attention_forward: the rule keeps 4 blocks, the selection has 3");
  support::expect_error([&] { forward([](auto& a) { a.ramp.strength = 1; }); },
                        "sparse_attention_forward: strength is 1, expected 0 to 1 - 2^-10");
  support::expect_error([&] { forward([&](auto& a) { a.ramp.widths = x.sink_logits; }); },
                        "widths is f32 [2], expected f32 [groups] = [1]");
  support::expect_error([&] { forward([&](auto& a) { a.block_lse = x.lse; }); },
                        "block_lse is f32 [2, 100], expected f32 [groups, tokens, g, k]");
  support::expect_error(
      [&] {
        SparseAttentionBackward a = x.gradient(selection, lists);
        a.dlog_gate = x.lse;
        sparse_attention_backward(stream, a);
      },
      "dlog_gate is f32 [2, 100], expected f32 [groups, tokens, k] = [1, 100, 3]");
}

TEST(SparseAttention, ListsMustBelongToTheSelection) {
  const Sparse x({{100}, 16, 2, 1, 16, {0, 1, 3}, 0.5, true});
  const Attended attended = x.attended();
  const support::Selection owner = reference::selection_of(x.scores, attended);
  const BlockSelection selection = owner.view();
  const reference::Lists list_owner(x.scores, attended);
  const BlockLists lists = list_owner.view();
  owner.row_of_blocks(0, 99)[0] += 1;
  owner.count(0, 99) -= 1;  // on the GPU it is their number that is found to be wrong
  Stream stream(support::device(), 1);
  support::expect_kernel_error(
      [&] { sparse_attention_forward(stream, x.forward(selection, lists)); },
      "the lists say that token 99 chose block", "the lists have other blocks of a token");
}

}  // namespace
}  // namespace tessera
