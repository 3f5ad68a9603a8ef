#include "model/decode_plan.h"

#include <gtest/gtest.h>

#include "kernels/core/copy.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"

namespace tessera {
namespace {

class PlanDecoding : public testing::Test {
 protected:
  /// `ids` of two smear tokens, a window of 4 tokens behind 2 sinks.
  DecodePlan plan(const std::vector<int32_t>& ids, std::span<const int32_t> positions) {
    const Tensor given = support::from_ints(ids);
    return plan_decoding(stream_, arena_,
                         {given.view().reshape({std::ssize(positions), 3}), positions}, kOptions);
  }
  static constexpr DecodeOptions kOptions{.block = 8,
                                          .gate_keys = 2,
                                          .smear_tokens = 2,
                                          .window = {.window = 4, .sink_tokens = 2, .spare = 0}};
  std::vector<int32_t> numbers(ConstTensorView list) { return to_vector<int32_t>(stream_, list); }

  using Tensor = support::Tensor;
  using Numbers = std::vector<int32_t>;
  Stream stream_{support::bare_device()};
  Arena arena_{support::bare_device(), 1 << 16};
};

TEST_F(PlanDecoding, GivesEachSequenceItsOwn) {
  const Numbers positions{0, 9, 3};
  const DecodePlan a = plan({5, -1, -1, 6, 7, 8, 9, 10, 11}, positions);
  EXPECT_EQ(a.tokens.sequences, 3);
  EXPECT_EQ(numbers(a.places), (Numbers{0, 1, 2}));
  EXPECT_EQ(numbers(a.tokens.ids), (Numbers{5, 6, 9}));
  EXPECT_EQ(a.tokens.before.shape(), (Shape{2, 3}));
  EXPECT_EQ(numbers(a.tokens.before), (Numbers{-1, 7, 10, -1, 8, 11}));
  EXPECT_EQ(numbers(a.tokens.share.positions), positions);
  EXPECT_EQ(numbers(a.tokens.share.starts), (Numbers{0, 1, 2, 3}));
  EXPECT_EQ(numbers(a.tokens.scope_starts), (Numbers{0, 1, 2, 3}));
  EXPECT_EQ(a.tokens.share.block, 8);
  EXPECT_EQ(a.tokens.all(), 3);
  // Rows of the ring behind the sinks; position 9 is the fourth of the second round.
  EXPECT_EQ(numbers(a.window_rows), (Numbers{0, 5, 3}));
  EXPECT_EQ(a.window_spans.shape(), (Shape{1, 3, 3, 2}));
  EXPECT_EQ(numbers(a.window_counts), (Numbers{1, 2, 2}));
  EXPECT_EQ(numbers(a.window_spans),
            (Numbers{0, 1, 0, 0, 0, 0, 0, 2, 2, 4, 0, 0, 0, 2, 2, 2, 0, 0}));
  EXPECT_EQ(numbers(a.all_spans), (Numbers{0, 1, 0, 10, 0, 4}));
  EXPECT_EQ(numbers(a.all_counts), (Numbers{1, 1, 1}));
  EXPECT_EQ(numbers(a.completed_parts), (Numbers{-1, -1, 0}));
}

// Parts are 4 tokens long.
TEST_F(PlanDecoding, NumbersThePartsThatTokensComplete) {
  const Numbers positions{2, 3, 7, 8, 11};
  EXPECT_EQ(numbers(plan(Numbers(15, 0), positions).completed_parts), (Numbers{-1, 0, 1, -1, 2}));
}

TEST_F(PlanDecoding, APromptKeepsAllPagesAndAWindow) {
  const PrefillPlan a = plan_prefill(stream_, arena_, 3, 16, kOptions);
  EXPECT_EQ(a.place, 3);
  EXPECT_EQ(a.pages, 2);
  EXPECT_EQ(numbers(a.places), Numbers(16, 3));
  EXPECT_EQ(numbers(a.rows), (Numbers{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}));
  EXPECT_EQ(numbers(a.page_numbers), (Numbers{0, 1}));
  // Two sinks, and the tokens 12 to 15 in a ring of 4 rows behind them.
  EXPECT_EQ(numbers(a.window_rows),
            (Numbers{0, 1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 4, 5, 2, 3}));
  // Shorter than window and sinks.
  const DecodeOptions wide{.block = 4, .gate_keys = 1, .smear_tokens = 0, .window = {9, 2, 0}};
  EXPECT_EQ(numbers(plan_prefill(stream_, arena_, 0, 4, wide).window_rows), (Numbers{0, 1, 2, 3}));
  for (const int64_t tokens : {0, 12}) {
    support::expect_error(
        [&] { plan_prefill(stream_, arena_, 0, tokens, kOptions); },
        concat("prefill: a prompt has ", tokens, " tokens, expected whole pages of 8"));
  }
}

TEST_F(PlanDecoding, SaysWhatDoesNotFit) {
  const Numbers positions{0, 1};
  support::expect_error(
      [&] {
        const Tensor ids = support::from_ints({1, 2});
        plan_decoding(stream_, arena_, {ids.view().reshape({2, 1}), positions}, kOptions);
      },
      "decode: ids is i32 [2, 1], expected i32 [sequences, 1 + smear tokens] = [2, 3]");
  support::expect_error([&] { plan({}, {}); }, "decode: there are no sequences");
  const Numbers before{-1};
  support::expect_error(
      [&] {
        plan({1, -1, -1}, before);
      },
      "window cache: position is -1, expected at least 0");
}

}  // namespace
}  // namespace tessera
