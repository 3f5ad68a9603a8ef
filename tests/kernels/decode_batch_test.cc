// Sequences that are decoded at once, each at a position of its own, get the bits that each gets
// alone.

#include <gtest/gtest.h>

#include <cstring>

#include "kernels/decode_attention.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using support::filled;
using support::random_tensor;
using support::Tensor;

constexpr int64_t kGroups = 2;
constexpr int64_t kGateDim = 12;
constexpr int64_t kBlock = 16;

/// [outer, 1, ...] of [outer, sequences, ...].
Tensor of_sequence(const Tensor& x, int64_t sequence) {
  const Shape& shape = x.shape();
  Shape one{shape[0], 1};
  if (shape.rank() == 3) one = {shape[0], 1, shape[2]};
  if (shape.rank() == 4) one = {shape[0], 1, shape[2], shape[3]};
  Tensor part(x.dtype(), one);
  const int64_t bytes = part.view().bytes() / shape[0];
  for (int64_t i = 0; i < shape[0]; ++i) {
    std::memcpy(static_cast<char*>(part.view().data()) + i * bytes,
                static_cast<const char*>(x.view().data()) + (i * shape[1] + sequence) * bytes,
                static_cast<size_t>(bytes));
  }
  return part;
}

void expect_same(const Tensor& batch, int64_t sequence, const Tensor& alone, const char* what) {
  const Tensor part = of_sequence(batch, sequence);
  ASSERT_EQ(part.view().bytes(), alone.view().bytes());
  EXPECT_EQ(std::memcmp(part.view().data(), alone.view().data(),
                        static_cast<size_t>(part.view().bytes())),
            0)
      << what << " of sequence " << sequence;
}

/// What decode_select reads and writes.
struct Choosing {
  Choosing(const BlockRule& of_rule, const TreeSearch& of_tree, std::vector<int32_t> at,
           int64_t max_pages)
      : rule(of_rule),
        tree(of_tree),
        pages(max_pages),
        positions(support::from_ints(at)),
        qt(random_tensor(DType::kF32, {kGroups, sequences(), kGateDim}, 1)),
        kt(random_tensor(DType::kF32, {kGroups, sequences(), pages, kGateDim}, 2)),
        nodes(DType::kF32, {kGroups, sequences(), tree_rows(pages), kGateDim}),
        page_rows(DType::kI32, {sequences(), pages}) {
    for (int64_t i = 0; i < sequences() * pages; ++i) {
      page_rows.as<int32_t>()[static_cast<size_t>(i)] = static_cast<int32_t>((i * 7) % pages);
    }
    allocate();
  }
  /// One sequence of another one.
  Choosing(const Choosing& all, int64_t sequence)
      : rule(all.rule),
        tree(all.tree),
        pages(all.pages),
        positions(support::from_ints({all.positions.as<int32_t>()[static_cast<size_t>(sequence)]})),
        qt(of_sequence(all.qt, sequence)),
        kt(of_sequence(all.kt, sequence)),
        nodes(DType::kF32, {kGroups, 1, tree_rows(pages), kGateDim}),
        page_rows(support::copy_of(all.page_rows.view().rows(sequence, 1))) {
    allocate();
  }

  int64_t sequences() const { return positions.shape()[0]; }
  int64_t most() const { return rule.sink_blocks + rule.kept + rule.window_blocks; }

  void allocate() {
    blocks = filled(DType::kI32, {kGroups, sequences(), rule.kept + 1}, 77);
    scores = filled(DType::kF32, {kGroups, sequences(), rule.kept + 1}, 77);
    chosen = filled(DType::kI32, {kGroups, sequences()}, 77);
    spans = filled(DType::kI32, {kGroups, sequences(), most(), 2}, 77);
    log_gates = filled(DType::kF32, {kGroups, sequences(), most()}, 77);
    counts = filled(DType::kI32, {kGroups, sequences()}, 77);
  }

  void run(Stream& stream) {
    if (tree.enabled()) insert_complete_pages(stream);
    const Tensor widths = filled(DType::kF32, {kGroups}, 0.7);
    const Tensor scratch(DType::kF32, {kGroups, sequences(), pages});
    decode_select(stream, {.selection = {blocks, scores, chosen},
                           .spans = spans,
                           .log_gates = log_gates,
                           .counts = counts,
                           .scores = scratch,
                           .qt = qt,
                           .kt = kt,
                           .page_rows = page_rows,
                           .positions = positions,
                           .block = kBlock,
                           .rule = rule,
                           .gate_keys = 1,
                           .ramp = {0.9f, widths},
                           .tree = tree,
                           .nodes = nodes});
  }

  void insert_complete_pages(Stream& stream) {
    std::vector<int32_t> places, numbers;
    for (int32_t s = 0; s < sequences(); ++s) {
      const int32_t own = positions.as<int32_t>()[static_cast<size_t>(s)] / kBlock;
      for (int32_t page = 0; page < own; ++page) {
        places.push_back(s);
        numbers.push_back(page);
      }
    }
    insert_pages(stream, {nodes, kt, support::from_ints(places), support::from_ints(numbers),
                          rule.sink_blocks, tree});
  }

  BlockRule rule;
  TreeSearch tree;
  int64_t pages;
  Tensor positions, qt, kt, nodes, page_rows;
  Tensor blocks{DType::kI32, {1}}, scores{DType::kF32, {1}}, chosen{DType::kI32, {1}};
  Tensor spans{DType::kI32, {1}}, log_gates{DType::kF32, {1}}, counts{DType::kI32, {1}};
};

void expect_choices_alone(Choosing batch) {
  Stream stream(support::device(), 2);
  batch.run(stream);
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    Choosing alone(batch, s);
    alone.run(stream);
    expect_same(batch.blocks, s, alone.blocks, "blocks");
    expect_same(batch.scores, s, alone.scores, "scores");
    expect_same(batch.chosen, s, alone.chosen, "chosen");
    expect_same(batch.spans, s, alone.spans, "spans");
    expect_same(batch.log_gates, s, alone.log_gates, "log_gates");
    expect_same(batch.counts, s, alone.counts, "counts");
  }
}

TEST(DecodeBatch, PagesAreChosenAsAlone) {
  expect_choices_alone({{1, 2, 3}, {}, {0, 40 * kBlock - 1, 7 * kBlock + 3, 5}, 40});
}

// Some of the tokens go through the tree, others have too few candidates for it.
TEST(DecodeBatch, PagesOfATreeAreChosenAsAlone) {
  expect_choices_alone(
      {{1, 2, 3}, {.radix = 4, .beam = 1}, {99 * kBlock, 3, 60 * kBlock + 7, 9 * kBlock}, 100});
}

TEST(DecodeBatch, TokensAreAttendedToAsAlone) {
  constexpr int64_t kSequences = 5;
  constexpr int64_t kRows = 300;
  constexpr int64_t kDim = 32;
  const std::vector<int32_t> groups{0, 1};
  const auto run = [&](int64_t sequences, const Tensor& q, const Tensor& k, const Tensor& v,
                       const Tensor& spans, const Tensor& counts) {
    Stream stream(support::device(), 2);
    Tensor o(q.dtype(), q.shape());
    decode_attention(stream, {.o = o,
                              .lse = Tensor(DType::kF32, {sequences, 4}),
                              .q = q,
                              .k = k,
                              .v = v,
                              .spans = spans,
                              .log_gates = {},
                              .counts = counts,
                              .groups = groups,
                              .kv_heads = kGroups,
                              .scale = 0.3f});
    return o;
  };
  for (const DType dtype : support::dtypes()) {
    const Tensor q = random_tensor(dtype, {kSequences, 4, kDim}, 1);
    const Tensor k = random_tensor(dtype, {kGroups, kSequences, kRows, kDim}, 2);
    const Tensor v = random_tensor(dtype, {kGroups, kSequences, kRows, kDim}, 3);
    const Tensor spans(DType::kI32, {1, kSequences, 2, 2});
    const Tensor counts(DType::kI32, {1, kSequences});
    for (int32_t s = 0; s < kSequences; ++s) {
      const auto at = static_cast<size_t>(4 * s);
      std::ranges::copy(std::array<int32_t, 4>{s, 40 + 13 * s, 150, 1 + 37 * s},
                        spans.as<int32_t>().begin() + static_cast<int64_t>(at));
      counts.as<int32_t>()[static_cast<size_t>(s)] = 1 + s % 2;
    }
    const Tensor all = run(kSequences, q, k, v, spans, counts);
    for (int64_t s = 0; s < kSequences; ++s) {
      const Tensor alone = run(1, support::copy_of(q.view().rows(s, 1)), of_sequence(k, s),
                               of_sequence(v, s), of_sequence(spans, s), of_sequence(counts, s));
      EXPECT_EQ(support::to_doubles(all.view().rows(s, 1)), support::to_doubles(alone))
          << name_of(dtype) << " sequence " << s;
    }
  }
}

// Positions at the beginning, in the middle and at the end of a part, on a state full of what is
// not to be read at a beginning.
TEST(DecodeBatch, PoolsGrowAsAlone) {
  constexpr int64_t kDim = 24;
  const std::vector<int32_t> at{16, 15, 4, 0, 31};
  const auto sequences = static_cast<int64_t>(at.size());
  const Tensor r = random_tensor(DType::kF32, {kGroups, kDim}, 1);
  const auto run = [&](Tensor& state, Tensor& kbar, const Tensor& k0,
                       const std::vector<int32_t>& positions) {
    Stream stream(support::device());
    page_gate(stream, {.state = state,
                       .kbar = kbar,
                       .k0 = k0,
                       .r = r,
                       .positions = support::from_ints(positions),
                       .part = kBlock});
  };
  for (const DType dtype : support::dtypes()) {
    const Tensor before = random_tensor(DType::kF32, {kGroups, sequences, kDim + 2}, 2);
    const Tensor k0 = random_tensor(dtype, {kGroups, sequences, kDim}, 3);
    Tensor state = support::copy_of(before.view());
    Tensor kbar = filled(dtype, k0.shape(), 77);
    run(state, kbar, k0, at);
    for (int64_t s = 0; s < sequences; ++s) {
      const int32_t position = at[static_cast<size_t>(s)];
      Tensor state_alone = of_sequence(before, s);
      Tensor kbar_alone = filled(dtype, {kGroups, 1, kDim}, 77);
      run(state_alone, kbar_alone, of_sequence(k0, s), {position});
      expect_same(state, s, state_alone, "state");
      expect_same(kbar, s, kbar_alone, "kbar");
      const bool complete = position % kBlock == kBlock - 1;
      EXPECT_EQ(support::to_doubles(kbar_alone)[0] == 77, !complete) << position;
    }
  }
}

TEST(DecodeBatch, APositionMustLieInThePages) {
  Choosing batch({1, 2, 3}, {}, {5, 10 * kBlock}, 10);
  Stream stream(support::device());
  support::expect_kernel_error(
      [&] { batch.run(stream); },
      "decode_select: position is 160, expected 0 to 159 with 10 pages of 16",
      "decode_select: a position is beyond the pages");
}

}  // namespace
}  // namespace tessera
