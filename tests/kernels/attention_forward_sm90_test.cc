#include "kernels/attention_forward_sm90.h"

#include <gtest/gtest.h>

#include <limits>
#include <numeric>

#include "kernels/core/capability.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"
#include "tests/support/segments.h"
#include "tests/support/sparse_case.h"

// Hopper's forward of attention against the kernels for all GPUs, which attention_test and
// sparse_attention_test are about.

namespace tessera {
namespace {

using support::Segments;
using support::Sparse;
using support::Tensor;

constexpr DType kType = DType::kBF16;
constexpr int64_t kAll = int64_t{1} << 40;

bool is_hopper() {
  return gpu::compute_capability(0) == 90;
}

struct Case {
  std::vector<int64_t> lengths;
  int64_t heads;
  int64_t kv_heads;
  int64_t d;
  int64_t window;
  int64_t sink_tokens;
  bool sink_logits;
};

struct Forward {
  explicit Forward(const Case& of)
      : c(of),
        segments(of.lengths, 64),
        q(support::random_tensor(kType, {segments.tokens(), of.heads, of.d}, 1, 1.5)),
        k(support::random_tensor(kType, {segments.tokens(), of.kv_heads, of.d}, 2)),
        v(support::random_tensor(kType, {segments.tokens(), of.kv_heads, of.d}, 3)),
        sink_logits(support::random_tensor(DType::kF32, {of.heads}, 5)),
        groups(static_cast<size_t>(of.kv_heads)),
        o(support::filled(kType, q.shape(), 77)),
        lse(support::filled(DType::kF32, {of.heads, segments.tokens()}, 77)) {
    std::iota(groups.begin(), groups.end(), 0);
  }
  AttentionForward arguments() const {
    return {.o = o,
            .lse = lse,
            .q = q,
            .k = k,
            .v = v,
            .grid = segments.grid(),
            .groups = groups,
            .window = c.window,
            .sink_tokens = c.sink_tokens,
            .scale = 0.125f,
            .sink_logits = c.sink_logits ? sink_logits.view() : TensorView()};
  }
  void run(bool sm90) const {
    Stream stream(support::device());
    sm90 ? gpu::attention_forward_sm90(stream, arguments())
         : gpu::attention_forward_sm80(stream, arguments());
    stream.synchronize();
  }

  Case c;
  Segments segments;
  Tensor q, k, v, sink_logits;
  std::vector<int32_t> groups;
  Tensor o, lse;
};

std::string name(const Case& c) {
  return concat("heads ", c.heads, "/", c.kv_heads, ", d ", c.d, ", window ", c.window, ": ");
}

TEST(AttentionForwardSm90, AgreesWithTheOneForAll) {
  if (!is_hopper()) GTEST_SKIP() << "needs a GPU of compute capability 9.0";
  const std::vector<Case> cases{
      {{70}, 4, 1, 64, kAll, 0, false},   {{70, 0, 1, 33, 130}, 8, 2, 128, kAll, 0, true},
      {{300}, 2, 2, 64, 100, 3, true},    {{200, 17}, 5, 1, 64, 16, 70, false},
      {{90, 64}, 1, 1, 128, 65, 5, true}, {{150}, 16, 1, 64, 66, 0, false},
      {{1}, 4, 1, 64, 1, 0, true},        {{129}, 12, 2, 128, 1, 1, false},
  };
  for (const Case& c : cases) {
    const Forward expected(c);
    const Forward found(c);
    Stream stream(support::device());
    ASSERT_TRUE(gpu::sm90_takes(stream, found.arguments())) << name(c);
    expected.run(false);
    found.run(true);
    support::expect_close(found.o, support::to_doubles(expected.o), 2e-5, name(c) + "o");
    support::expect_close(found.lse, support::to_doubles(expected.lse), 1e-12, name(c) + "lse");
  }
}

TEST(AttentionForwardSm90, SparseAgreesWithTheOneForAll) {
  if (!is_hopper()) GTEST_SKIP() << "needs a GPU of compute capability 9.0";
  const std::vector<support::SparseCase> cases{
      {{180, 0, 1, 33}, 16, 4, 1, 64, {1, 2, 3}, 0.7, true, kType},
      {{330, 70}, 64, 4, 2, 128, {0, 1, 2}, 0.999, false, kType},
      {{410}, 128, 6, 2, 64, {1, 1, 1}, 0.5, true, kType},
      {{270}, 64, 16, 1, 64, {1, 1, 2}, 0.9, false, kType},
      // Many blocks that a tile of 16 tokens chose and its neighbour did not: more than stages.
      {{900}, 16, 4, 1, 64, {0, 1, 1}, 0.9, false, kType},
  };
  for (const support::SparseCase& c : cases) {
    const Sparse expected(c);
    const Sparse found(c);
    const reference::Attended chosen = expected.attended();
    const support::Selection choices = reference::selection_of(expected.scores, chosen);
    const BlockSelection selection = choices.view();
    const reference::Lists all_lists(expected.scores, chosen);
    const BlockLists lists = all_lists.view();
    Stream stream(support::device());
    const SparseAttentionForward a = found.forward(selection, lists);
    ASSERT_TRUE(gpu::sm90_takes(stream, a));
    gpu::attention_forward_sm80(stream, expected.forward(selection, lists));
    gpu::attention_forward_sm90(stream, a);
    stream.synchronize();
    const std::string which = concat("block ", c.block, ", heads ", c.heads, ", d ", c.d, ": ");
    support::expect_close(found.o, support::to_doubles(expected.o), 2e-5, which + "o");
    support::expect_close(found.lse, support::to_doubles(expected.lse), 1e-12, which + "lse");
    support::expect_close(found.block_lse, support::to_doubles(expected.block_lse), 1e-12,
                          which + "block_lse");
  }
}

TEST(AttentionForwardSm90, RowsOfOthersDoNotMatter) {
  if (!is_hopper()) GTEST_SKIP() << "needs a GPU of compute capability 9.0";
  const Case c{{40, 50}, 4, 1, 64, kAll, 0, false};
  const Forward plain(c);
  const Forward beside_nan(c);
  const auto spoil = [](const Tensor& x, size_t row) {
    const auto numbers = x.as<BF16>();
    for (size_t i = row * 64; i < numbers.size(); ++i) {
      numbers[i] = from_float<BF16>(std::numeric_limits<float>::quiet_NaN());
    }
  };
  spoil(beside_nan.k, 40);
  spoil(beside_nan.v, 40);
  spoil(beside_nan.q, 40 * 4);
  plain.run(true);
  beside_nan.run(true);
  for (size_t i = 0; i < 40 * 4 * 64; ++i) {
    ASSERT_EQ(plain.o.as<BF16>()[i].bits, beside_nan.o.as<BF16>()[i].bits) << i;
  }
}

TEST(AttentionForwardSm90, GivesTheSameBitsTwice) {
  if (!is_hopper()) GTEST_SKIP() << "needs a GPU of compute capability 9.0";
  const Case c{{200, 65}, 8, 2, 64, 90, 2, true};
  const Forward one(c);
  const Forward two(c);
  one.run(true);
  two.run(true);
  support::expect_same_bits(one.o, two.o, "o");
  support::expect_same_bits(one.lse, two.lse, "lse");
}

TEST(AttentionForwardSm90, LeavesTheRestToOthers) {
  Stream stream(support::device());
  const auto takes = [&](const Forward& x) { return gpu::sm90_takes(stream, x.arguments()); };
  EXPECT_EQ(takes(Forward({{40}, 4, 1, 64, 9, 0, false})), is_hopper());
  EXPECT_FALSE(takes(Forward({{40}, 4, 1, 72, 9, 0, false})));
  EXPECT_FALSE(takes(Forward({{40}, 9, 1, 64, 9, 0, false})));  // cut into 5 and 4 heads
}

}  // namespace
}  // namespace tessera
