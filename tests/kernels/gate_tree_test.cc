#include "kernels/gate_tree.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <numeric>
#include <set>

#include "kernels/block_selection.h"
#include "kernels/decode_attention.h"
#include "kernels/gate_score.h"
#include "tests/reference/gate.h"
#include "tests/support/compare.h"
#include "tests/support/selection.h"
#include "tests/support/sharded_grid.h"

namespace tessera {
namespace {

using support::Segments;
using support::Selection;
using support::ShardedGrid;
using support::Tensor;

constexpr int64_t kGroups = 2;

/// The interpreter of kernels is slow: where the CPU does all, it does a part.
bool slow() {
  return support::device().kind == DeviceKind::kGpu;
}

struct Case {
  std::vector<int64_t> lengths;
  BlockRule rule;
  TreeSearch tree;
  bool ties;  ///< small whole numbers as inputs, so that many scores are equal and all are exact
  int64_t gate_dim = 8;
};

/// Blocks of 16 tokens: 64 blocks are 1024 tokens.
std::vector<Case> cases() {
  return {
      {{1500}, {1, 2, 2}, {4, 1}, false},
      {{1500}, {1, 2, 2}, {4, 1}, true},
      {{0, 37, 0, 1001, 1, 700, 0}, {0, 1, 3}, {4, 5}, true},
      {{0, 37, 0, 1001, 1, 700, 0}, {2, 3, 3}, {4, 6}, false, 35},
      {{2000, 1700}, {1, 2, 6}, {8, 1}, false, 64},
      {{2000, 1700}, {1, 2, 6}, {8, 11}, true, 20},
      {{5000}, {1, 2, 7}, {16, 16}, false},
      {{5000}, {1, 2, 17}, {16, 1}, true},
  };
}

struct Inputs {
  Segments segments;
  Tensor qt;
  Tensor kt;
};

Tensor whole_numbers(const Shape& shape, uint64_t seed, int32_t least, int32_t count) {
  const Tensor ints = support::random_ints(shape, seed, least, count);
  Tensor floats(DType::kF32, shape);
  std::ranges::copy(ints.as<int32_t>(), floats.as<float>().begin());
  return floats;
}

Inputs make_inputs(const Case& c) {
  Segments segments(c.lengths, 16);
  const Shape queries{kGroups, segments.tokens(), c.gate_dim};
  const Shape keys{kGroups, segments.grid().max_blocks(), c.gate_dim};
  if (c.ties) {
    return {std::move(segments), whole_numbers(queries, 1, -1, 2), whole_numbers(keys, 2, 0, 2)};
  }
  return {std::move(segments), support::random_tensor(DType::kF32, queries, 1),
          support::random_tensor(DType::kF32, keys, 2)};
}

Selection select(Stream& stream, const Case& c, const SegmentGrid& grid, const Tensor& qt,
                 const Tensor& kt) {
  Selection selection(kGroups, grid.tokens(), c.rule.kept);
  const Tensor nodes =
      support::filled(DType::kF32, {kGroups, tree_rows(grid.max_blocks()), c.gate_dim}, 1e6);
  score_select(stream, {.selection = selection.view(),
                        .qt = qt.view(),
                        .kt = kt.view(),
                        .grid = grid,
                        .rule = c.rule,
                        .gate_keys = 1,
                        .tree = c.tree,
                        .nodes = c.tree.enabled() ? nodes.view() : TensorView{}});
  return selection;
}

/// Leaves of segment s of group c.
std::vector<float> leaves_of(const Case& c, const Inputs& in, int64_t group, int64_t s) {
  const int64_t blocks = in.segments.first_block(s + 1) - in.segments.first_block(s);
  const int64_t first = group * in.kt.shape()[1] + in.segments.first_block(s) + c.rule.sink_blocks;
  const auto keys = in.kt.as<float>();
  std::vector<float> leaves;
  for (int64_t i = 0; i < (blocks - c.rule.sink_blocks) * c.gate_dim; ++i) {
    leaves.push_back(keys[static_cast<size_t>(first * c.gate_dim + i)]);
  }
  return leaves;
}

/// A row against the reference, which numbers leaves; `z` scores a leaf.
void expect_row(const Selection& selection, int64_t group, int64_t token, int64_t sink_blocks,
                const reference::Choice& expected, const std::function<float(int64_t)>& z) {
  const auto blocks = selection.row_of_blocks(group, token);
  const auto scores = selection.row_of_scores(group, token);
  ASSERT_EQ(selection.count(group, token), std::ssize(expected.blocks));
  for (size_t s = 0; s < blocks.size(); ++s) {
    const int64_t leaf = s + 1 == blocks.size()       ? expected.runner_up
                         : s < expected.blocks.size() ? expected.blocks[s]
                                                      : -1;
    ASSERT_EQ(blocks[s], leaf < 0 ? -1 : leaf + sink_blocks) << "slot " << s << ", token " << token;
    ASSERT_EQ(scores[s], leaf < 0 ? 0 : z(leaf)) << "slot " << s << ", token " << token;
  }
}

/// Of so many tokens a few at the beginning, in the middle and at the end, that tests stay short.
support::Share some_tokens(int64_t tokens) {
  if (slow()) return {{100, 116}, {tokens / 2 - 7, tokens / 2 + 10}, {tokens - 30, tokens}};
  return {{100, 200}, {tokens / 2 - 70, tokens / 2 + 30}, {tokens - 100, tokens}};
}

TEST(GateTree, EveryTokenGetsWhatItsBeamsReach) {
  Stream stream{support::device(), 2};
  for (const Case& c : cases()) {
    Inputs in = make_inputs(c);
    const int64_t all = in.segments.tokens();
    const ShardedGrid part(stream, in.segments,
                           slow() ? some_tokens(all) : support::Share{{0, all}}, {.whole = true});
    const int64_t tokens = part.grid().tokens();
    in.qt = support::take_rows(in.qt, 1, part.query_tokens());
    const Selection selection = select(stream, c, part.grid(), in.qt, in.kt);
    int64_t searched = 0;  // tokens that go down the tree
    for (int64_t group = 0; group < kGroups; ++group) {
      for (int64_t i = 0; i < tokens; ++i) {
        const int64_t token = part.query_tokens()[static_cast<size_t>(i)];
        const int64_t s = in.segments.segment(token);
        const int64_t candidates = c.rule.candidates(in.segments.own_block(token));
        if (!slow() && i % 5 != 0 && in.segments.position(token) % 16 < 14) continue;
        searched += c.tree.first_level(candidates, c.rule.kept) > 0;
        const auto levels =
            reference::gate_tree(leaves_of(c, in, group, s), c.gate_dim, c.tree.radix, 1);
        const float* qt = in.qt.as<float>().data() + (group * tokens + i) * c.gate_dim;
        const auto score = [&](int64_t level, int64_t node) {
          return gate_product(qt, levels[static_cast<size_t>(level)].data() + node * c.gate_dim,
                              c.gate_dim);
        };
        const reference::TreeChoice expected =
            reference::choose_in_tree(score, std::ssize(levels), candidates, c.tree.radix,
                                      c.tree.width(c.rule.kept), c.rule.kept);
        expect_row(selection, group, i, c.rule.sink_blocks, expected.choice,
                   [&](int64_t leaf) { return score(0, leaf); });
      }
    }
    EXPECT_GT(searched, 50) << "radix " << c.tree.radix << ", beam " << c.tree.beam;
  }
}

TEST(GateTree, WithAnUnlimitedBeamIsTheFlatChoice) {
  Stream stream{support::device(), 2};
  for (const int64_t blocks : {2048, 2047, 1000, 77}) {
    if (slow() && blocks > 100) continue;
    Case c{{blocks * 16}, {1, 2, 11}, {}, true};
    const Inputs in = make_inputs(c);
    const ShardedGrid late(stream, in.segments, some_tokens(blocks * 16), {.whole = true});
    const Tensor qt = whole_numbers({kGroups, late.grid().tokens(), c.gate_dim}, 3, -1, 2);
    const Selection flat = select(stream, c, late.grid(), qt, in.kt);
    for (const int64_t radix : {4, 8, 16}) {
      c.tree = {radix, 1'000'000};
      const Selection tree = select(stream, c, late.grid(), qt, in.kt);
      for (int64_t i = 0; i < late.grid().tokens(); ++i) tree.expect_same_row(flat, 0, i);
      // Down all levels of the reference, also where parents are not complete.
      const std::vector<double> leaves = support::to_doubles(in.kt);
      const auto levels = reference::gate_tree(leaves, c.gate_dim, radix, 1);
      const std::vector<double> query = reference::row_of(support::to_doubles(qt), 0, c.gate_dim);
      const auto score = [&](int64_t level, int64_t node) {
        return reference::dot(
            reference::row_of(levels[static_cast<size_t>(level)], node, c.gate_dim), query);
      };
      const auto choose = [&](int64_t depth) {
        return reference::choose_in_tree(score, depth, blocks, radix, 1'000'000, 44).choice;
      };
      EXPECT_EQ(choose(std::ssize(levels)).blocks, choose(1).blocks);
      EXPECT_EQ(choose(std::ssize(levels)).runner_up, choose(1).runner_up);
    }
  }
}

// A narrow beam loses nothing where the leaves below a node are equal: the search goes down the
// levels, and must come back with the bits of the flat choice.
TEST(GateTree, LosesNothingWhereNeighboursAreEqual) {
  Stream stream{support::device(), 2};
  for (const int64_t blocks : {2048, 2047, 1000, 700}) {
    if (slow() && blocks > 1000) continue;
    for (const int64_t radix : {4, 8}) {
      Case c{{blocks * 16}, {1, 2, 5}, {radix, 8}, true};
      const Inputs in = make_inputs(c);
      const ShardedGrid late(stream, in.segments, some_tokens(blocks * 16), {.whole = true});
      const Tensor qt = whole_numbers({kGroups, late.grid().tokens(), c.gate_dim}, 3, -1, 2);
      const auto keys = in.kt.as<float>();
      const auto dim = static_cast<size_t>(c.gate_dim);
      const auto same = static_cast<size_t>(radix * radix * radix);
      for (size_t i = 0; i < keys.size(); ++i) {
        const size_t leaf = i / dim % static_cast<size_t>(in.kt.shape()[1]) - 1;
        if (leaf < keys.size()) keys[i] = keys[i - leaf % same * dim];
      }
      const Selection tree = select(stream, c, late.grid(), qt, in.kt);
      c.tree = {};
      const Selection flat = select(stream, c, late.grid(), qt, in.kt);
      for (int64_t i = 0; i < late.grid().tokens(); ++i) {
        tree.expect_same_row(flat, 0, i);
        tree.expect_same_row(flat, 1, i);
      }
    }
  }
}

TEST(GateTree, DecodingChoosesTheSameBits) {
  Stream stream{support::device(), 2};
  for (const Case& c : {Case{{slow() ? 500 : 1300}, {1, 2, 3}, {4, 1}, false},
                        Case{{slow() ? 500 : 1300}, {0, 1, 2}, {4, 5}, true}}) {
    const Inputs in = make_inputs(c);
    const Selection trained = select(stream, c, in.segments.grid(), in.qt, in.kt);
    const int64_t step = slow() ? 45 : 1;  // 45: tokens at every place of their blocks
    // A longer cache than the sequence: the nodes lie elsewhere.
    constexpr int64_t kPages = 120;
    const int64_t spans = c.rule.sink_blocks + c.rule.kept + c.rule.window_blocks;
    const Tensor nodes =
        support::filled(DType::kF32, {kGroups, 1, tree_rows(kPages), c.gate_dim}, 1e6);
    const Tensor kt = support::filled(DType::kF32, {kGroups, 1, kPages, c.gate_dim}, 1e6);
    const Tensor qt(DType::kF32, {kGroups, 1, c.gate_dim});
    const Tensor widths = support::filled(DType::kF32, {kGroups}, 1);
    const auto copy = [&](const Tensor& to, int64_t to_row, const Tensor& from, int64_t row) {
      for (int64_t group = 0; group < kGroups; ++group) {
        const auto numbers = from.view().rows(group, 1).as<float>().subspan(
            static_cast<size_t>(row * c.gate_dim), static_cast<size_t>(c.gate_dim));
        std::ranges::copy(numbers,
                          to.view().rows(group, 1).as<float>().begin() + to_row * c.gate_dim);
      }
    };
    int64_t page = 0;
    for (int64_t i = 0; i < in.segments.tokens(); i += step) {
      for (; page < i / 16; ++page) {
        copy(kt, page, in.kt, page);
        insert_pages(
            stream, {nodes, kt, support::from_ints({0}),
                     support::from_ints({static_cast<int32_t>(page)}), c.rule.sink_blocks, c.tree});
      }
      const Selection selection(kGroups, 1, c.rule.kept);
      copy(qt, 0, in.qt, i);
      decode_select(stream, {.selection = selection.view(),
                             .spans = Tensor(DType::kI32, {kGroups, 1, spans, 2}),
                             .log_gates = Tensor(DType::kF32, {kGroups, 1, spans}),
                             .counts = Tensor(DType::kI32, {kGroups, 1}),
                             .scores = Tensor(DType::kF32, {kGroups, 1, kPages}),
                             .qt = qt,
                             .kt = kt,
                             .page_rows = Tensor(DType::kI32, {1, kPages}),
                             .positions = support::from_ints({static_cast<int32_t>(i)}),
                             .block = 16,
                             .rule = c.rule,
                             .gate_keys = 1,
                             .ramp = {0.5f, widths},
                             .tree = c.tree,
                             .nodes = nodes});
      for (int64_t group = 0; group < kGroups; ++group) {
        EXPECT_TRUE(
            std::ranges::equal(selection.row_of_blocks(group, 0), trained.row_of_blocks(group, i)));
        EXPECT_TRUE(
            std::ranges::equal(selection.row_of_scores(group, 0), trained.row_of_scores(group, i)));
        EXPECT_EQ(selection.count(group, 0), trained.count(group, i)) << "token " << i;
      }
    }
  }
}

TEST(GateTree, FirstLevelIsTheHighestWithMoreNodesThanTheBeam) {
  const TreeSearch tree{.radix = 8, .beam = 16};
  EXPECT_EQ(tree.width(4), 16);
  EXPECT_EQ(tree.width(20), 21);
  EXPECT_EQ((TreeSearch{.radix = 8, .beam = 1}).width(2), 8);
  EXPECT_EQ(tree.first_level(16 * 8 + 7, 4), 0);
  EXPECT_EQ(tree.first_level(17 * 8, 4), 1);
  EXPECT_EQ(tree.first_level(17 * 64 - 1, 4), 1);
  EXPECT_EQ(tree.first_level(17 * 64, 4), 2);
}

TEST(GateTree, LayoutFitsItsRows) {
  for (const int64_t radix : {4, 8, 16}) {
    for (int64_t leaves = 0; leaves < 3000; ++leaves) {
      const TreeLayout layout(leaves, radix);
      EXPECT_LE(layout.rows(), tree_rows(leaves)) << radix << " " << leaves;
      EXPECT_EQ(layout.levels() == 0, leaves <= radix);
      for (int64_t level = 0; level < layout.levels(); ++level) {
        EXPECT_GE(layout.first_row(level + 1) - layout.first_row(level), layout.nodes(level));
      }
    }
  }
}

TEST(GateTree, PagesMakeTheNodesOfTheReference) {
  constexpr int64_t kPages = 150;
  constexpr int64_t kGateDim = 5;
  Stream stream{support::device()};
  const Tensor kt = support::random_tensor(DType::kF32, {kGroups, 1, kPages, kGateDim}, 3);
  for (const int64_t radix : {4, 8, 16}) {
    const Tensor nodes =
        support::filled(DType::kF32, {kGroups, 1, tree_rows(kPages), kGateDim}, 1e6);
    // One page, then many at once; those of another sequence, which is not there, are -1.
    std::vector<int32_t> pages(kPages - 1);
    std::iota(pages.begin(), pages.end(), 1);
    pages.insert(pages.begin() + 70, -1);
    for (const std::vector<int32_t>& numbers : {std::vector<int32_t>{0}, pages}) {
      const Tensor places = support::from_ints(std::vector<int32_t>(numbers.size(), 0));
      insert_pages(stream, {nodes.view(),
                            kt.view(),
                            places,
                            support::from_ints(numbers),
                            2,
                            {.radix = radix, .beam = 1}});
    }
    const TreeLayout layout(kPages - 2, radix);
    std::vector<double> leaves = support::to_doubles(kt);
    leaves.erase(leaves.begin(), leaves.begin() + (kPages + 2) * kGateDim);  // of group 1
    const auto levels = reference::gate_tree(leaves, kGateDim, radix, radix);
    ASSERT_EQ(std::ssize(levels), layout.levels() + 1);
    for (int64_t level = 0; level < layout.levels(); ++level) {
      ASSERT_GT(layout.nodes(level), radix);
      for (int64_t node = 0; node < layout.nodes(level); ++node) {
        for (int64_t d = 0; d < kGateDim; ++d) {
          const int64_t family = layout.first_row(level) + node / radix * radix;
          const int64_t at = (tree_rows(kPages) + family) * kGateDim + d * radix + node % radix;
          EXPECT_NEAR(nodes.as<float>()[static_cast<size_t>(at)],
                      levels[static_cast<size_t>(level)][static_cast<size_t>(node * kGateDim + d)],
                      1e-6);
        }
      }
    }
  }
}

TEST(GateTree, NoTokenSeesALaterOne) {
  const Case c{{100, slow() ? 500 : 900}, {1, 2, 2}, {4, 1}, false};
  Stream stream{support::device()};
  const Inputs in = make_inputs(c);
  const Selection before = select(stream, c, in.segments.grid(), in.qt, in.kt);
  const int64_t last = in.segments.own_block(in.segments.tokens() - 1);
  for (int64_t b = 0; b < last; b += slow() ? 9 : 3) {
    const Tensor kt = support::copy_of(in.kt.view());
    const int64_t row = in.segments.first_block(1) + b;
    for (int64_t d = 0; d < c.gate_dim; ++d) {
      kt.as<float>()[static_cast<size_t>(row * c.gate_dim + d)] =
          b % 2 == 0 ? 9 : std::numeric_limits<float>::quiet_NaN();
    }
    const Selection after = select(stream, c, in.segments.grid(), in.qt, kt);
    for (int64_t i = 0; i < in.segments.tokens(); ++i) {
      const bool later = in.segments.segment(i) == 1 && in.segments.own_block(i) > b;
      if (!later) before.expect_same_row(after, 0, i);
    }
  }
}

TEST(GateTree, KeysThatAreNoNumbersAreChosenLast) {
  const Case c{{1280}, {0, 1, 3}, {4, 1}, false};
  const Inputs in = make_inputs(c);
  for (const int64_t block : {3, 17, 40}) {
    in.kt.as<float>()[static_cast<size_t>(block * c.gate_dim)] =
        std::numeric_limits<float>::quiet_NaN();
  }
  in.qt.as<float>()[static_cast<size_t>(1270 * c.gate_dim)] =
      std::numeric_limits<float>::quiet_NaN();  // one token: all scores
  Stream stream{support::device()};
  const Selection selection = select(stream, c, in.segments.grid(), in.qt, in.kt);
  for (int64_t i = 0; i < in.segments.tokens(); ++i) {
    std::set<int32_t> distinct;
    for (const int32_t b : selection.row_of_blocks(0, i)) {
      EXPECT_LT(b, std::max<int64_t>(1, in.segments.own_block(i)));
      EXPECT_TRUE(b < 0 || distinct.insert(b).second);
      const bool no_number = b == 3 || b == 17 || b == 40;
      EXPECT_FALSE(i > 400 && i != 1270 && no_number) << "token " << i;
    }
  }
  // Only NaN: the largest blocks. 79 candidates; the last three have no complete parent.
  EXPECT_TRUE(std::ranges::equal(selection.row_of_blocks(0, 1270), std::vector{76, 77, 78, 75}));
}

TEST(GateTree, AnyNumberOfThreadsGivesTheSameBits) {
  Case c = cases()[3];
  if (slow()) c.lengths = {300, 500};
  const Inputs in = make_inputs(c);
  support::expect_same_on_any_threads(
      [&](Stream& stream) { return select(stream, c, in.segments.grid(), in.qt, in.kt).take(); });
}

TEST(GateTree, SaysWhatIsWrong) {
  const Case c{{40}, {1, 1, 2}, {4, 1}, false, 20};
  const Inputs in = make_inputs(c);
  Selection selection(kGroups, 40, 2);
  const Tensor nodes(DType::kF32, {kGroups, 9, 20});
  Stream stream{support::device()};
  const ScoreSelect a{selection.view(), in.qt.view(), in.kt.view(), in.segments.grid(), c.rule, 1,
                      c.tree,           nodes.view()};
  const auto expect = [&](const std::function<void(ScoreSelect&)>& change,
                          const std::string& sentence) {
    ScoreSelect wrong = a;
    change(wrong);
    support::expect_error([&] { score_select(stream, wrong); }, sentence);
  };
  score_select(stream, a);
  expect([](ScoreSelect& x) { x.tree.radix = 6; },
         "score_select: the tree has radix 6, expected 4, 8 or 16");
  expect(
      [](ScoreSelect& x) {
        x.kt = support::plan_view(DType::kF32, {2, 6, 20});
        x.gate_keys = 2;
      },
      "score_select: gate_keys is 2, expected 1 with a tree; set its beam to 0 to score every "
      "block");
  expect(
      [](ScoreSelect& x) {
        x.nodes = support::plan_view(DType::kF32, {2, 3, 20});
      },
      "score_select: nodes is f32 [2, 3, 20], expected f32 "
      "[groups, tree_rows(max_blocks), gate_dim] = [2, 9, 20]");
  const Tensor zero = support::from_ints({0});
  const InsertPages page{nodes.view().reshape({kGroups, 1, 9, 20}),
                         in.kt.view().reshape({kGroups, 1, 3, 20}),
                         zero,
                         zero,
                         1,
                         c.tree};
  const auto expect_page = [&](const std::function<void(InsertPages&)>& change,
                               const std::string& sentence) {
    InsertPages wrong = page;
    change(wrong);
    support::expect_error([&] { insert_pages(stream, wrong); }, sentence);
  };
  insert_pages(stream, page);
  expect_page([](InsertPages& x) { x.tree = {}; },
              "insert_pages: the tree has beam 0, expected at least 1");
  expect_page([](InsertPages& x) { x.sink_blocks = -1; },
              "insert_pages: sink_blocks is -1, expected >= 0");
  expect_page([](InsertPages& x) { x.nodes = x.nodes.rows(0, 1); },
              "insert_pages: nodes is f32 [1, 1, 9, 20], expected f32 "
              "[groups, sequences, tree_rows(pages), gate_dim] = [2, 1, 9, 20]");
  const Tensor two = support::from_ints({0, 0});
  expect_page([&](InsertPages& x) { x.places = two; },
              "insert_pages: places is i32 [2], expected i32 [new pages] = [1]");
  const auto expect_outside = [&](int32_t place, int32_t number, const std::string& sentence) {
    const Tensor places = support::from_ints({place}), numbers = support::from_ints({number});
    InsertPages wrong = page;
    wrong.places = places;
    wrong.numbers = numbers;
    support::expect_kernel_error([&] { insert_pages(stream, wrong); }, sentence,
                                 "insert_pages: a place or a page is outside of kt");
  };
  expect_outside(1, 0, "insert_pages: place is 1, expected 0 to 0");
  expect_outside(0, 3, "insert_pages: page is 3, expected -1 to 2");
  expect_outside(0, -2, "insert_pages: page is -2, expected -1 to 2");
}

}  // namespace
}  // namespace tessera
