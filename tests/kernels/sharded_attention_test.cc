#include <gtest/gtest.h>

#include <numeric>

#include "kernels/attention.h"
#include "kernels/sparse_attention.h"
#include "tests/support/choices.h"
#include "tests/support/compare.h"
#include "tests/support/sharded_grid.h"
#include "tests/support/tolerance.h"

// Attention on ranks that have some of the queries, some of the heads and the keys that these see,
// put together, is attention on one rank.

namespace tessera {
namespace {

using support::KeyReach;
using support::Segments;
using support::Selection;
using support::ShardedGrid;
using support::Share;
using support::Sum;
using support::take_rows;
using support::Tensor;

constexpr int64_t kD = 16;
constexpr int64_t kGroups = 2;
constexpr int64_t kGroupHeads = 6;  // two runs of heads
constexpr int64_t kHeads = kGroups * kGroupHeads;
constexpr float kScale = 0.25f;

/// Query heads of one rank and the KV groups that it holds.
struct Heads {
  int64_t begin;
  int64_t end;
  int64_t first_group;
  int64_t end_group;
};
/// All on one rank; or cut within groups, with a group that nobody there has a head of.
const std::vector<std::vector<Heads>> kHeadSplits{{{0, kHeads, 0, kGroups}},
                                                  {{0, 4, 0, 2}, {4, 8, 0, 2}, {8, 12, 1, 2}}};

std::vector<int64_t> numbers(int64_t begin, int64_t end) {
  std::vector<int64_t> all(static_cast<size_t>(end - begin));
  std::iota(all.begin(), all.end(), begin);
  return all;
}

std::vector<int32_t> all_groups(int64_t count) {
  std::vector<int32_t> groups(static_cast<size_t>(count));
  std::iota(groups.begin(), groups.end(), 0);
  return groups;
}

/// Inputs and results of all tokens, or of those of one rank.
struct Operands {
  Tensor q, k, v, d_o, sink_logits;
  Tensor o, lse, dq, dk, dv, delta, dsink_logits;

  Operands(Tensor queries, Tensor keys, Tensor values, Tensor gradient, Tensor sinks)
      : q(std::move(queries)),
        k(std::move(keys)),
        v(std::move(values)),
        d_o(std::move(gradient)),
        sink_logits(std::move(sinks)),
        o(support::filled(q.dtype(), q.shape(), 77)),
        lse(support::filled(DType::kF32, {q.shape()[1], q.shape()[0]}, 77)),
        dq(support::filled(q.dtype(), q.shape(), 77)),
        dk(support::filled(q.dtype(), k.shape(), 77)),
        dv(support::filled(q.dtype(), k.shape(), 77)),
        delta(DType::kF32, {q.shape()[1], q.shape()[0]}),
        dsink_logits(DType::kF32, {q.shape()[1]}) {}
  static Operands random(DType dtype, int64_t tokens) {
    const auto make = [&](int64_t heads, uint64_t seed) {
      return support::random_tensor(dtype, {tokens, heads, kD}, seed);
    };
    return {make(kHeads, 1), make(kGroups, 2), make(kGroups, 3), make(kHeads, 4),
            support::random_tensor(DType::kF32, {kHeads}, 5)};
  }
  Operands of_rank(const ShardedGrid& grid, const Heads& heads) const {
    const auto of_queries = [&](const Tensor& x) {
      return take_rows(take_rows(x, 0, grid.query_tokens()), 1, numbers(heads.begin, heads.end));
    };
    const auto of_keys = [&](const Tensor& x) {
      return take_rows(take_rows(x, 0, grid.key_tokens()), 1,
                       numbers(heads.first_group, heads.end_group));
    };
    return {of_queries(q), of_keys(k), of_keys(v), of_queries(d_o),
            take_rows(sink_logits, 0, numbers(heads.begin, heads.end))};
  }
};

/// What the ranks hold, put together.
struct Results {
  explicit Results(const Operands& whole)
      : o{whole.o.shape()},
        lse{whole.lse.shape()},
        dq{whole.dq.shape()},
        dk{whole.dk.shape()},
        dv{whole.dv.shape()},
        dsink_logits{whole.dsink_logits.shape()} {}

  void add(const Operands& part, const ShardedGrid& grid, const Heads& heads) {
    const auto of_heads = numbers(heads.begin, heads.end);
    const auto place = [&](Sum& sum, const Tensor& x, const std::vector<int64_t>& tokens,
                           const std::vector<int64_t>& of_axis) {
      Sum all_heads{sum.shape.with(1, x.shape()[1])};
      all_heads.add(x, 0, tokens);
      sum.add(support::from_doubles(DType::kF32, all_heads.shape, all_heads.values), 1, of_axis);
    };
    const auto of_groups = numbers(heads.first_group, heads.end_group);
    place(o, part.o, grid.query_tokens(), of_heads);
    place(dq, part.dq, grid.query_tokens(), of_heads);
    place(dk, part.dk, grid.key_tokens(), of_groups);
    place(dv, part.dv, grid.key_tokens(), of_groups);
    Sum all_heads{lse.shape.with(0, heads.end - heads.begin)};
    all_heads.add(part.lse, 1, grid.query_tokens());
    lse.add(support::from_doubles(DType::kF32, all_heads.shape, all_heads.values), 0, of_heads);
    dsink_logits.add(part.dsink_logits, 0, of_heads);
  }
  void expect_equal(const Operands& whole, double tolerance, const std::string& what) const {
    const auto expect = [&](const Sum& sum, const Tensor& x, double of, const char* name) {
      support::expect_close(sum.values, support::to_doubles(x), of, what + name);
    };
    expect(o, whole.o, tolerance, "o");
    expect(lse, whole.lse, 1e-12, "lse");
    expect(dq, whole.dq, tolerance, "dq");
    expect(dk, whole.dk, tolerance, "dk");
    expect(dv, whole.dv, tolerance, "dv");
    expect(dsink_logits, whole.dsink_logits, tolerance, "dsink_logits");
  }

  Sum o, lse, dq, dk, dv, dsink_logits;
};

void attend(Stream& stream, const Operands& x, const SegmentGrid& grid, int64_t window,
            int64_t sinks, int64_t group_heads, int64_t first_head) {
  const std::vector<int32_t> groups = all_groups(x.k.shape()[1]);
  attention_forward(stream, {.o = x.o,
                             .lse = x.lse,
                             .q = x.q,
                             .k = x.k,
                             .v = x.v,
                             .grid = grid,
                             .groups = groups,
                             .window = window,
                             .sink_tokens = sinks,
                             .scale = kScale,
                             .sink_logits = x.sink_logits,
                             .group_heads = group_heads,
                             .first_head = first_head});
  attention_backward(stream, {.dq = x.dq,
                              .dk = x.dk,
                              .dv = x.dv,
                              .delta = x.delta,
                              .d_o = x.d_o,
                              .o = x.o,
                              .lse = x.lse,
                              .q = x.q,
                              .k = x.k,
                              .v = x.v,
                              .grid = grid,
                              .groups = groups,
                              .window = window,
                              .sink_tokens = sinks,
                              .scale = kScale,
                              .sink_logits = x.sink_logits,
                              .dsink_logits = x.dsink_logits,
                              .group_heads = group_heads,
                              .first_head = first_head});
}

/// Shorter where kernels are interpreted: the longest still lies on three ranks.
std::vector<int64_t> lengths() {
  if (support::device().kind == DeviceKind::kCpu) return support::sharded_lengths();
  return {20, 0, 7, 141, 33};
}
/// All ways to share out tokens and heads; or where kernels are interpreted some of both, each way
/// of the last two once.
template <class Splits, class F>
void for_each_way(int64_t tokens, const Splits& splits, F&& f) {
  const std::vector<std::vector<Share>> layouts = support::share_layouts(tokens);
  const bool all = support::device().kind == DeviceKind::kCpu;
  for (size_t i = all ? 0 : layouts.size() - 2; i < layouts.size(); ++i) {
    for (size_t j = 0; j < splits.size(); ++j) {
      if (all || (i + j) % splits.size() == 0) f(layouts[i], splits[j]);
    }
  }
}

int64_t first_head(const Heads& heads) {
  return heads.begin - heads.first_group * kGroupHeads;
}

void expect_dense_is_whole(DType dtype, int64_t window, int64_t sinks) {
  Stream stream{support::device(), 2};
  const Segments segments(lengths(), 64);
  const Operands whole = Operands::random(dtype, segments.tokens());
  attend(stream, whole, segments.grid(), window, sinks, 0, 0);
  // Sums of rounded parts are as exact as bf16.
  const double tolerance = dtype == DType::kBF16 ? 2e-5 : support::tolerance(dtype);
  const auto expect = [&](const std::vector<Share>& shares, const std::vector<Heads>& split) {
    Results results(whole);
    for (const Share& share : shares) {
      const KeyReach reach{.before = window - 1, .sinks = sinks, .spare_rows = 3};
      const ShardedGrid grid(stream, segments, share, reach);
      for (const Heads& heads : split) {
        const Operands part = whole.of_rank(grid, heads);
        attend(stream, part, grid.grid(), window, sinks, kGroupHeads, first_head(heads));
        results.add(part, grid, heads);
      }
    }
    results.expect_equal(whole, tolerance,
                         concat(shares.size(), " ranks, ", split.size(), " splits: "));
  };
  for_each_way(segments.tokens(), kHeadSplits, expect);
}

TEST(ShardedAttention, FullAttentionIsWhole) {
  expect_dense_is_whole(DType::kF32, int64_t{1} << 40, 0);
}

TEST(ShardedAttention, AWindowLongerThanAShareIsWhole) {
  const int64_t window = support::device().kind == DeviceKind::kCpu ? 150 : 60;
  expect_dense_is_whole(DType::kF32, window, 0);
  expect_dense_is_whole(DType::kF32, window, 5);
}

TEST(ShardedAttention, AShortWindowWithSinksElsewhereIsWhole) {
  expect_dense_is_whole(DType::kF32, 20, 70);
  expect_dense_is_whole(DType::kF32, 1, 1);
  expect_dense_is_whole(DType::kBF16, 33, 3);
}

/// The choices of the tokens of one rank, as lists.
struct Chosen {
  Selection selection;
  std::vector<Tensor> memory;
  BlockLists lists;

  Chosen(Stream& stream, const SegmentGrid& grid, Selection of, int64_t capacity)
      : selection(std::move(of)) {
    memory.reserve(6);
    const auto make = [&](DType dtype, int64_t columns) {
      memory.push_back(support::filled(dtype, {kGroups, columns}, 77));
      return memory.back().view();
    };
    lists = {.tile_offsets = make(DType::kI32, grid.max_tiles() + 1),
             .tile_blocks = make(DType::kI32, capacity),
             .tile_masks = make(DType::kU16, capacity),
             .block_offsets = make(DType::kI32, grid.max_blocks() + 1),
             .block_tiles = make(DType::kI32, capacity),
             .block_masks = make(DType::kU16, capacity)};
    build_block_lists(stream, {lists, selection.view(), grid});
  }
};

Selection take_choices(const Selection& whole, const std::vector<int64_t>& tokens) {
  Selection part(kGroups, static_cast<int64_t>(tokens.size()), whole.kept());
  for (int64_t c = 0; c < kGroups; ++c) {
    for (size_t i = 0; i < tokens.size(); ++i) {
      const auto to = static_cast<int64_t>(i);
      std::ranges::copy(whole.row_of_blocks(c, tokens[i]), part.row_of_blocks(c, to).begin());
      std::ranges::copy(whole.row_of_scores(c, tokens[i]), part.row_of_scores(c, to).begin());
      part.count(c, to) = whole.count(c, tokens[i]);
    }
  }
  return part;
}

constexpr BlockRule kRule{.sink_blocks = 1, .window_blocks = 2, .kept = 3};

/// Results of sparse attention that dense attention does not have.
struct GateResults {
  explicit GateResults(int64_t tokens)
      : block_lse(support::filled(DType::kF32, {kGroups, tokens, kGroupHeads, kRule.kept}, 0)),
        dlog_gate(support::filled(DType::kF32, {kGroups, tokens, kRule.kept}, 77)) {}
  Tensor block_lse;
  Tensor dlog_gate;
};

void attend_sparse(Stream& stream, const Operands& x, const SegmentGrid& grid, const Chosen& chosen,
                   const GateResults& gate, int64_t group_heads, int64_t before) {
  const Tensor widths = support::filled(DType::kF32, {kGroups}, 1.5);
  const std::vector<int32_t> groups = all_groups(kGroups);
  const BlockSelection selection = chosen.selection.view();
  sparse_attention_forward(stream, {.o = x.o,
                                    .lse = x.lse,
                                    .q = x.q,
                                    .k = x.k,
                                    .v = x.v,
                                    .grid = grid,
                                    .groups = groups,
                                    .rule = kRule,
                                    .selection = selection,
                                    .lists = chosen.lists,
                                    .ramp = {0.7f, widths},
                                    .scale = kScale,
                                    .sink_logits = x.sink_logits,
                                    .block_lse = gate.block_lse,
                                    .group_heads = group_heads,
                                    .first_head = before});
  sparse_attention_backward(stream, {.dq = x.dq,
                                     .dk = x.dk,
                                     .dv = x.dv,
                                     .dlog_gate = gate.dlog_gate,
                                     .delta = x.delta,
                                     .d_o = x.d_o,
                                     .o = x.o,
                                     .lse = x.lse,
                                     .q = x.q,
                                     .k = x.k,
                                     .v = x.v,
                                     .grid = grid,
                                     .groups = groups,
                                     .rule = kRule,
                                     .selection = selection,
                                     .lists = chosen.lists,
                                     .ramp = {0.7f, widths},
                                     .scale = kScale,
                                     .sink_logits = x.sink_logits,
                                     .dsink_logits = x.dsink_logits,
                                     .group_heads = group_heads,
                                     .first_head = before});
}

/// All heads on every rank, or each group cut in the middle.
const std::vector<std::vector<Heads>> kSparseSplits{{{0, kHeads, 0, kGroups}},
                                                    {{0, 4, 0, 2}, {4, 12, 0, 2}}};

void expect_sparse_is_whole(int64_t block, const KeyReach& reach_of_most) {
  Stream stream{support::device(), 2};
  const Segments segments(lengths(), block);
  const int64_t tokens = segments.tokens();
  const Operands whole = Operands::random(DType::kF32, tokens);
  const Chosen all(stream, segments.grid(), support::choose_at_random(segments, kRule, kGroups, 9),
                   block_list_capacity(tokens, block, kRule));
  const GateResults gate(tokens);
  attend_sparse(stream, whole, segments.grid(), all, gate, 0, 0);
  const auto expect = [&](const std::vector<Share>& shares, const std::vector<Heads>& split) {
    Results results(whole);
    Sum block_lse{gate.block_lse.shape()};
    Sum dlog_gate{gate.dlog_gate.shape()};
    for (const Share& share : shares) {
      KeyReach reach = reach_of_most;
      // The tensors have room for all keys, as max_blocks is of whole segments.
      if (!reach.whole) reach.spare_rows = tokens;
      const ShardedGrid grid(stream, segments, share, reach);
      const int64_t capacity = piece_list_capacity(grid.grid().max_tiles(), 301, block, kRule);
      const Chosen chosen(stream, grid.grid(), take_choices(all.selection, grid.query_tokens()),
                          capacity);
      for (const Heads& heads : split) {
        const Operands part = whole.of_rank(grid, heads);
        const GateResults of_part(part.q.shape()[0]);
        attend_sparse(stream, part, grid.grid(), chosen, of_part, kGroupHeads, heads.begin);
        results.add(part, grid, heads);
        block_lse.add(of_part.block_lse, 1, grid.query_tokens());
        dlog_gate.add(of_part.dlog_gate, 1, grid.query_tokens());
      }
    }
    const std::string what = concat(shares.size(), " ranks, ", split.size(), " splits: ");
    const double tolerance = support::tolerance(DType::kF32);
    results.expect_equal(whole, tolerance, what);
    support::expect_close(gate.block_lse, block_lse.values, 1e-12, what + "block_lse");
    support::expect_close(gate.dlog_gate, dlog_gate.values, tolerance, what + "dlog_gate");
  };
  for_each_way(tokens, kSparseSplits, expect);
}

TEST(ShardedAttention, SparseAttentionWithAllKeysIsWhole) {
  expect_sparse_is_whole(16, {.whole = true});
  expect_sparse_is_whole(32, {.whole = true});
}

TEST(ShardedAttention, SparseAttentionNeedsNoKeysBehindTheLastQuery) {
  expect_sparse_is_whole(16, {.before = 1000});
}

TEST(ShardedAttention, AnyNumberOfThreadsGivesTheSameBits) {
  const Segments segments(lengths(), 64);
  const Operands whole = Operands::random(DType::kF32, segments.tokens());
  const Share share = support::zigzag_shares(segments.tokens(), 3)[1];
  support::expect_same_on_any_threads([&](Stream& stream) {
    const ShardedGrid grid(stream, segments, share, {.before = 99, .sinks = 3});
    Operands part = whole.of_rank(grid, kHeadSplits[1][1]);
    attend(stream, part, grid.grid(), 100, 3, kGroupHeads, first_head(kHeadSplits[1][1]));
    return support::tensors(std::move(part.o), std::move(part.dq), std::move(part.dk),
                            std::move(part.dv));
  });
}

TEST(ShardedAttention, SaysWhatIsWrong) {
  Stream stream{support::device()};
  const Segments segments({100}, 64);
  const Operands whole = Operands::random(DType::kF32, 100);
  const ShardedGrid grid(stream, segments, {{50, 80}}, {.before = 9, .spare_rows = 60});
  const Heads heads{4, 8, 0, 2};
  const Operands part = whole.of_rank(grid, heads);
  const auto expect = [&](const Operands& x, int64_t group_heads, int64_t before,
                          const std::string& sentence) {
    support::expect_error([&] { attend(stream, x, grid.grid(), 10, 0, group_heads, before); },
                          sentence);
  };
  expect(part, 6, 9, "attention_forward: heads 9 to 12, but 2 groups of 6");
  expect(part, -1, 0, "attention_forward: group_heads is -1 and first_head 0, expected at least 1");
  expect(part, 6, -1, "attention_forward: group_heads is 6 and first_head -1, expected at least 1");
  expect(part, 0, 4, "attention_forward: first_head is 4 without group_heads");
  expect(whole, 6, 0,
         "attention_forward: k is f32 [100, 2, 16], expected f32 [tokens, kv_heads, d] = "
         "[99, 2, 16]");
}

TEST(ShardedAttention, SparseAttentionSaysWhichKeysItLacks) {
  Stream stream{support::device()};
  const Segments segments({100}, 64);
  const Operands whole = Operands::random(DType::kF32, 100);
  const Share share{{50, 80}};
  const Heads heads{0, kHeads, 0, kGroups};
  const Selection all = support::choose_at_random(segments, kRule, kGroups, 9);
  const auto expect = [&](const ShardedGrid& owner, const SegmentGrid& grid,
                          const std::string& sentence) {
    const Chosen chosen(stream, grid, take_choices(all, owner.query_tokens()), 10);
    const Operands part = whole.of_rank(owner, heads);
    const GateResults gate(30);
    support::expect_kernel_error(
        [&] { attend_sparse(stream, part, grid, chosen, gate, kGroupHeads, 0); }, sentence,
        "the keys of a segment are not one run from its first to its last query's position");
  };
  const ShardedGrid window(stream, segments, share, {.before = 9, .spare_rows = 60});
  expect(window, window.grid(),
         "sparse_attention: segment 0 has a run of keys from position 41 on, expected one run, "
         "from 0 on");
  const ShardedGrid full(stream, segments, share, {.whole = true});
  SegmentGrid cut = full.grid();
  const Tensor run_starts = support::from_ints({0, 79, 79, 79});
  cut.run_starts = run_starts.view();
  expect(full, cut,
         "sparse_attention: segment 0 has queries up to position 80 and 79 keys, expected all");
}

}  // namespace
}  // namespace tessera
