#include "kernels/block_selection.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <set>

#include "kernels/gate_score.h"
#include "tests/reference/gate.h"
#include "tests/support/compare.h"
#include "tests/support/selection.h"

namespace tessera {
namespace {

using support::Segments;
using support::Selection;
using support::Tensor;

struct Case {
  std::vector<int64_t> lengths;
  int64_t block;
  BlockRule rule;
  int64_t gate_keys;
  bool ties;  ///< small whole numbers as inputs, so that many scores are equal
};

std::vector<Case> cases() {
  return {
      {{200}, 16, {1, 2, 2}, 1, false},
      {{200}, 16, {1, 2, 2}, 1, true},
      {{0, 37, 0, 0, 171, 1, 16, 0}, 16, {0, 1, 3}, 1, true},
      {{5, 160, 333}, 32, {1, 1, 1}, 4, false},
      {{5, 160, 333}, 32, {2, 3, 4}, 4, true},
      {{700, 130}, 16, {1, 2, 28}, 1, false},
      {{700}, 16, {1, 2, 17}, 2, true},
      {{300}, 16, {0, 1, 1000}, 1, false},
      {{3}, 64, {1, 1, 2}, 1, false},
      {{100}, 16, {1, 1, 5}, 1, true},  // exactly as many candidates as slots for the last block
  };
}

struct Inputs {
  Segments segments;
  Tensor qt;
  Tensor kt;
};

constexpr int64_t kGroups = 2;
constexpr int64_t kGateDim = 20;

Inputs make_inputs(const Case& c) {
  Segments segments(c.lengths, c.block);
  const Shape queries{kGroups, segments.tokens(), kGateDim};
  const Shape keys{kGroups, segments.grid().max_blocks() * c.gate_keys, kGateDim};
  if (!c.ties) {
    return {std::move(segments), support::random_tensor(DType::kF32, queries, 1),
            support::random_tensor(DType::kF32, keys, 2)};
  }
  Tensor qt(DType::kF32, queries);
  Tensor kt(DType::kF32, keys);
  const Tensor q = support::random_ints(queries, 1, -1, 2);
  const Tensor k = support::random_ints(keys, 2, 0, 2);
  std::copy(q.as<int32_t>().begin(), q.as<int32_t>().end(), qt.as<float>().begin());
  std::copy(k.as<int32_t>().begin(), k.as<int32_t>().end(), kt.as<float>().begin());
  return {std::move(segments), std::move(qt), std::move(kt)};
}

Selection select(Stream& stream, const Case& c, const Segments& segments, const Tensor& qt,
                 const Tensor& kt) {
  Selection selection(kGroups, segments.tokens(), c.rule.kept);
  score_select(stream, {.selection = selection.view(),
                        .qt = qt.view(),
                        .kt = kt.view(),
                        .grid = segments.grid(),
                        .rule = c.rule,
                        .gate_keys = c.gate_keys});
  return selection;
}

/// Scores of one token with the blocks of its segment before its own, by gate_score.h.
std::vector<float> scores_of(const Case& c, const Inputs& in, int64_t group, int64_t token) {
  const int64_t first = (group * in.segments.grid().max_blocks() +
                         in.segments.first_block(in.segments.segment(token))) *
                        c.gate_keys * kGateDim;
  const float* qt = in.qt.as<float>().data() + (group * in.segments.tokens() + token) * kGateDim;
  const float* kt = in.kt.as<float>().data() + first;
  std::vector<float> z;
  for (int64_t b = 0; b < in.segments.own_block(token); ++b) {
    z.push_back(gate_score(qt, kt + b * c.gate_keys * kGateDim, kGateDim, c.gate_keys));
  }
  return z;
}

/// Every bit of the row is what the definition says.
void expect_row(const Selection& selection, int64_t group, int64_t token,
                const reference::Choice& expected, const std::vector<float>& z) {
  const auto blocks = selection.row_of_blocks(group, token);
  const auto scores = selection.row_of_scores(group, token);
  ASSERT_EQ(selection.count(group, token), static_cast<int64_t>(expected.blocks.size()));
  for (size_t s = 0; s < blocks.size(); ++s) {
    const bool last = s + 1 == blocks.size();
    const int64_t wanted = last                         ? expected.runner_up
                           : s < expected.blocks.size() ? expected.blocks[s]
                                                        : -1;
    ASSERT_EQ(blocks[s], wanted) << "slot " << s << " of token " << token;
    ASSERT_EQ(scores[s], wanted < 0 ? 0 : z[static_cast<size_t>(wanted)]) << "slot " << s;
  }
}

TEST(BlockSelection, EveryTokenGetsTheBestBlocks) {
  Stream stream{support::device(), 2};
  for (const Case& c : cases()) {
    const Inputs in = make_inputs(c);
    const Selection selection = select(stream, c, in.segments, in.qt, in.kt);
    for (int64_t group = 0; group < kGroups; ++group) {
      for (int64_t i = 0; i < in.segments.tokens(); ++i) {
        const std::vector<float> z = scores_of(c, in, group, i);
        expect_row(selection, group, i, reference::choose(z, in.segments.own_block(i), c.rule), z);
      }
    }
  }
}

TEST(BlockSelection, ScoresAreTheDefinition) {
  Stream stream{support::device()};
  for (const Case& c : cases()) {
    const Inputs in = make_inputs(c);
    const Selection selection = select(stream, c, in.segments, in.qt, in.kt);
    const std::vector<double> qt = support::to_doubles(in.qt);
    const std::vector<double> kt = support::to_doubles(in.kt);
    for (int64_t i = 0; i < in.segments.tokens(); i += 7) {
      const auto z = reference::gate_scores(in.segments, qt, kt, 1, i, kGateDim, c.gate_keys);
      for (int64_t s = 0; s <= c.rule.kept; ++s) {
        const int32_t b = selection.row_of_blocks(1, i)[static_cast<size_t>(s)];
        if (b < 0) continue;
        EXPECT_NEAR(selection.row_of_scores(1, i)[static_cast<size_t>(s)],
                    z[static_cast<size_t>(b)], 2e-6 * (1 + std::abs(z[static_cast<size_t>(b)])));
      }
    }
  }
}

TEST(BlockSelection, DecodingChoosesTheSameBits) {
  Stream stream{support::device(), 2};
  for (const Case& c : cases()) {
    const Inputs in = make_inputs(c);
    const Selection selection = select(stream, c, in.segments, in.qt, in.kt);
    std::vector<int32_t> blocks(static_cast<size_t>(c.rule.kept + 1));
    std::vector<float> scores(blocks.size());
    for (int64_t i = 0; i < in.segments.tokens(); ++i) {
      const std::vector<float> z = scores_of(c, in, 0, i);
      const int64_t candidates = c.rule.candidates(in.segments.own_block(i));
      const std::span<const float> scored =
          candidates == 0
              ? std::span<const float>{}
              : std::span<const float>(z).subspan(static_cast<size_t>(c.rule.sink_blocks),
                                                  static_cast<size_t>(candidates));
      EXPECT_EQ(choose_blocks(scored, c.rule.sink_blocks, blocks, scores), selection.count(0, i));
      EXPECT_TRUE(std::ranges::equal(blocks, selection.row_of_blocks(0, i))) << "token " << i;
      EXPECT_TRUE(std::ranges::equal(scores, selection.row_of_scores(0, i))) << "token " << i;
    }
  }
}

TEST(BlockSelection, NoTokenSeesALaterOne) {
  const Case c{{90, 250}, 16, {1, 2, 3}, 1, false};
  Stream stream{support::device()};
  Inputs in = make_inputs(c);
  const Selection before = select(stream, c, in.segments, in.qt, in.kt);
  // Another query changes only its own row; another block only rows it is a candidate of. The
  // interpreter of kernels is slow.
  const bool slow = support::device().kind == DeviceKind::kGpu;
  for (int64_t changed = 0; changed < in.segments.tokens(); changed += slow ? 77 : 11) {
    Tensor qt = support::copy_of(in.qt.view());
    for (int64_t d = 0; d < kGateDim; ++d)
      qt.as<float>()[static_cast<size_t>(changed * kGateDim + d)] = 9;
    const Selection after = select(stream, c, in.segments, qt, in.kt);
    for (int64_t i = 0; i < in.segments.tokens(); ++i) {
      if (i != changed) before.expect_same_row(after, 0, i);
    }
  }
  for (int64_t b = 0; b < in.segments.own_block(339); b += slow ? 4 : 1) {
    Tensor kt = support::copy_of(in.kt.view());
    const int64_t row = in.segments.first_block(1) + b;
    for (int64_t d = 0; d < kGateDim; ++d)
      kt.as<float>()[static_cast<size_t>(row * kGateDim + d)] += 3;
    const Selection after = select(stream, c, in.segments, in.qt, kt);
    for (int64_t i = 0; i < in.segments.tokens(); ++i) {
      const bool later = in.segments.segment(i) == 1 && in.segments.own_block(i) > b;
      if (!later) before.expect_same_row(after, 0, i);
    }
  }
}

TEST(BlockSelection, ScoresThatAreNoNumbersAreChosenLast) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  for (const int64_t gate_keys : {1, 2}) {
    const Case c{{320}, 16, {0, 1, 4}, gate_keys, false};
    Inputs in = make_inputs(c);
    const auto set_key = [&](int64_t block, float value) {
      in.kt.as<float>()[static_cast<size_t>(block * gate_keys * kGateDim)] = value;
    };
    set_key(3, nan);
    set_key(5, -nan);
    set_key(9, infinity);
    in.qt.as<float>()[static_cast<size_t>(250 * kGateDim)] = nan;  // one token: all scores
    Stream stream{support::device()};
    const Selection selection = select(stream, c, in.segments, in.qt, in.kt);
    for (int64_t i = 0; i < in.segments.tokens(); ++i) {
      std::set<int32_t> distinct;
      for (const int32_t b : selection.row_of_blocks(0, i)) {
        EXPECT_LT(b, std::max<int64_t>(1, in.segments.own_block(i)));
        EXPECT_GE(b, -1);
        EXPECT_TRUE(b < 0 || distinct.insert(b).second);
      }
    }
    // 19 candidates, of which at most three are not finite.
    const auto last = selection.row_of_blocks(0, 319);
    EXPECT_EQ(std::ranges::count(last, 3) + std::ranges::count(last, 5), 0);
    EXPECT_EQ(selection.row_of_blocks(0, 250)[4], 10);  // only NaN: the largest blocks
  }
}

TEST(BlockSelection, AnyNumberOfThreadsGivesTheSameBits) {
  const Case c{{5, 160, 333}, 32, {1, 1, 2}, 4, false};
  const Inputs in = make_inputs(c);
  support::expect_same_on_any_threads(
      [&](Stream& stream) { return select(stream, c, in.segments, in.qt, in.kt).take(); });
}

TEST(BlockSelection, SaysWhatIsWrong) {
  const Case c{{40}, 16, {1, 1, 2}, 2, false};
  Inputs in = make_inputs(c);
  Selection selection(kGroups, 40, 2);
  Stream stream{support::device()};
  const ScoreSelect a{.selection = selection.view(),
                      .qt = in.qt.view(),
                      .kt = in.kt.view(),
                      .grid = in.segments.grid(),
                      .rule = c.rule,
                      .gate_keys = 2};
  const auto expect = [&](const std::function<void(ScoreSelect&)>& change,
                          const std::string& sentence) {
    ScoreSelect wrong = a;
    change(wrong);
    support::expect_error([&] { score_select(stream, wrong); }, sentence);
  };
  expect([](ScoreSelect& x) { x.gate_keys = 1; },
         "score_select: kt is f32 [2, 6, 20], expected f32 "
         "[groups, max_blocks * gate_keys, gate_dim] = [2, 3, 20]");
  expect([](ScoreSelect& x) { x.gate_keys = 0; }, "score_select: gate_keys is 0, expected >= 1");
  expect([](ScoreSelect& x) { x.rule.kept = 3; },
         "score_select: selection has 2 slots, expected rule.kept = 3");
  expect([](ScoreSelect& x) { x.rule.kept = 0; }, "score_select: kept is 0, expected >= 1");
  expect([](ScoreSelect& x) { x.rule.window_blocks = 0; },
         "score_select: window_blocks is 0, expected >= 1");
  expect([](ScoreSelect& x) { x.rule.sink_blocks = -1; },
         "score_select: sink_blocks is -1, expected >= 0");
  expect(
      [](ScoreSelect& x) {
        x.qt = support::plan_view(DType::kF32, {2, 40});
      },
      "score_select: qt is [2, 40], expected [groups, tokens, gate_dim]");
  expect(
      [](ScoreSelect& x) {
        x.selection.counts = support::plan_view(DType::kF32, {2, 40});
      },
      "score_select: selection.counts is f32 [2, 40], expected i32 [groups, tokens] = [2, 40]");
  support::expect_error(
      [&] {
        std::vector<int32_t> blocks(3);
        std::vector<float> scores(2);
        choose_blocks({}, 0, blocks, scores);
      },
      "choose_blocks: blocks has 3 slots and scores 2, expected k + 1 >= 2 of both");
}

TEST(BlockSelection, CountsTheRowsWithTwoChoices) {
  for (const Case& c : cases()) {
    const Inputs in = make_inputs(c);
    Stream stream{support::device()};
    const Selection selection = select(stream, c, in.segments, in.qt, in.kt);
    int64_t rows = 0;
    for (int64_t i = 0; i < in.segments.tokens(); ++i) rows += selection.count(0, i) >= 2;
    EXPECT_EQ(count_gate_rows(in.segments.starts().as<int32_t>(), c.block, c.rule), rows);
  }
}

}  // namespace
}  // namespace tessera
