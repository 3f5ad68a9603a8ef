#include "kernels/decode_attention.h"

#include <gtest/gtest.h>

#include "kernels/attention.h"
#include "kernels/gate_pool.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"
#include "tests/support/segments.h"
#include "tests/support/selection.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using support::Segments;
using support::Selection;
using support::Tensor;

constexpr int64_t kHeads = 6;
constexpr int64_t kKvHeads = 3;
constexpr int64_t kDim = 24;
constexpr int64_t kGateDim = 8;
constexpr float kScale = 0.3f;

/// o of training and decoding: the same formulas in f32, then one rounding.
double tolerance_of(DType dtype) {
  return dtype == DType::kBF16 ? 2e-5 : 1e-12;
}

/// Copies row `from_row` of [.., d] numbers to row `to_row`.
void copy_row(const Tensor& to, int64_t to_row, const Tensor& from, int64_t from_row) {
  const int64_t bytes = to.shape()[-1] * size_of(to.dtype());
  std::memcpy(static_cast<char*>(to.view().data()) + to_row * bytes,
              static_cast<const char*>(from.view().data()) + from_row * bytes,
              static_cast<size_t>(bytes));
}

/// q, k and v of a sequence with all its heads.
struct Sequence {
  Sequence(DType dtype, int64_t tokens)
      : q(support::random_tensor(dtype, {tokens, kHeads, kDim}, 1)),
        k(support::random_tensor(dtype, {tokens, kKvHeads, kDim}, 2)),
        v(support::random_tensor(dtype, {tokens, kKvHeads, kDim}, 3)),
        sink_logits(support::random_tensor(DType::kF32, {kHeads}, 4)),
        o(support::filled(dtype, {tokens, kHeads, kDim}, 0)),
        lse(DType::kF32, {kHeads, tokens}) {}

  /// The row of the new token, [1, heads, d].
  static TensorView token(const Tensor& x, int64_t position) {
    return x.view().rows(position, 1).reshape({1, kHeads, kDim});
  }

  Tensor q, k, v, sink_logits, o, lse;
};

TEST(DecodeAttention, AWindowCacheGivesWhatTrainingGives) {
  constexpr int64_t kTokens = 150;
  const std::vector<int32_t> groups{0, 2};
  for (const DType dtype : support::dtypes()) {
    for (const WindowCache cache : {WindowCache{20, 3, 5}, WindowCache{7, 0, 0},
                                    WindowCache{1, 2, 64}, WindowCache{500, 4, 64}}) {
      const Sequence x(dtype, kTokens);
      const Segments segments({kTokens}, 16);
      Stream stream(support::device(), 1);
      attention_forward(stream, {.o = x.o,
                                 .lse = x.lse,
                                 .q = x.q,
                                 .k = x.k,
                                 .v = x.v,
                                 .grid = segments.grid(),
                                 .groups = groups,
                                 .window = cache.window,
                                 .sink_tokens = cache.sink_tokens,
                                 .scale = kScale,
                                 .sink_logits = x.sink_logits});
      const Tensor o = support::filled(dtype, x.o.shape(), 0);
      const Tensor k = support::filled(dtype, {2, 1, cache.rows(), kDim}, 1e6);
      const Tensor v = support::filled(dtype, {2, 1, cache.rows(), kDim}, 1e6);
      const Tensor spans(DType::kI32, {2, 1, 3, 2});
      const Tensor counts(DType::kI32, {2, 1});
      for (int64_t position = 0; position < kTokens; ++position) {
        std::array<CacheSpan, 3> of_token;
        const int64_t count = cache.spans(position, of_token);
        for (int64_t c = 0; c < 2; ++c) {
          const int64_t row = c * cache.rows() + cache.row(position);
          copy_row(k, row, x.k, position * kKvHeads + groups[static_cast<size_t>(c)]);
          copy_row(v, row, x.v, position * kKvHeads + groups[static_cast<size_t>(c)]);
          std::memcpy(&spans.as<int32_t>()[static_cast<size_t>(c * 6)], of_token.data(),
                      sizeof(of_token));
          counts.as<int32_t>()[static_cast<size_t>(c)] = static_cast<int32_t>(count);
        }
        decode_attention(stream, {.o = Sequence::token(o, position),
                                  .lse = {},
                                  .q = Sequence::token(x.q, position),
                                  .k = k,
                                  .v = v,
                                  .spans = spans,
                                  .log_gates = {},
                                  .counts = counts,
                                  .groups = groups,
                                  .kv_heads = kKvHeads,
                                  .scale = kScale,
                                  .sink_logits = x.sink_logits});
      }
      support::expect_close(o, support::to_doubles(x.o), tolerance_of(dtype),
                            concat(name_of(dtype), " window ", cache.window));
    }
  }
}

/// The gate branch of a sequence without its projections: kt = kbar.
struct Gate {
  Gate(DType dtype, const Segments& segments, int64_t groups, int64_t keys)
      : qt(support::random_tensor(DType::kF32, {groups, segments.tokens(), kGateDim}, 5, 2)),
        k0(support::random_tensor(dtype, {groups, segments.tokens(), kGateDim}, 6)),
        r(support::random_tensor(DType::kF32, {groups, kGateDim}, 7)),
        kbar(dtype, {groups, segments.grid().max_blocks() * keys, kGateDim}),
        kt(DType::kF32, kbar.shape()),
        widths(support::filled(DType::kF32, {groups}, 0.8)) {
    Stream stream(support::device(), 1);
    const Tensor alpha(DType::kF32, {groups, segments.tokens()});
    gate_pool_forward(stream, {.kbar = kbar,
                               .alpha = alpha,
                               .k0 = k0,
                               .r = r,
                               .grid = segments.grid(),
                               .gate_keys = keys});
    const auto pooled = support::to_doubles(kbar);
    for (size_t i = 0; i < pooled.size(); ++i) kt.as<float>()[i] = static_cast<float>(pooled[i]);
  }
  Tensor qt, k0, r, kbar, kt, widths;
};

/// Decodes a sequence of global groups and compares every position with training.
class PagedDecoding {
 public:
  PagedDecoding(DType dtype, int64_t block, BlockRule rule, int64_t gate_keys,
                const TreeSearch& tree = {}, int64_t tokens = 173)
      : dtype_(dtype),
        tokens_(tokens),
        block_(block),
        rule_(rule),
        gate_keys_(gate_keys),
        tree_(tree),
        segments_({tokens_}, block),
        x_(dtype, tokens_),
        gate_(dtype, segments_, kGroups, gate_keys),
        trained_(kGroups, tokens_, rule.kept),
        pages_((tokens_ + block - 1) / block),
        rows_(pages_ * (block + 1)),
        most_(rule.sink_blocks + rule.kept + rule.window_blocks) {}

  void train() {
    Stream stream(support::device(), 1);
    const SegmentGrid& grid = segments_.grid();
    score_select(stream,
                 {.selection = trained_.view(),
                  .qt = gate_.qt,
                  .kt = gate_.kt,
                  .grid = grid,
                  .rule = rule_,
                  .gate_keys = gate_keys_,
                  .tree = tree_,
                  .nodes = Tensor(DType::kF32, {kGroups, tree_rows(grid.max_blocks()), kGateDim})});
    const int64_t capacity = block_list_capacity(tokens_, block_, rule_);
    const auto ints = [](Shape shape) { return Tensor(DType::kI32, shape); };
    const Tensor tile_offsets = ints({kGroups, grid.max_tiles() + 1});
    const Tensor block_offsets = ints({kGroups, grid.max_blocks() + 1});
    const Tensor tile_blocks = ints({kGroups, capacity});
    const Tensor block_tiles = ints({kGroups, capacity});
    const Tensor tile_masks(DType::kU16, {kGroups, capacity});
    const Tensor block_masks(DType::kU16, {kGroups, capacity});
    const BlockLists lists{tile_offsets,  tile_blocks, tile_masks,
                           block_offsets, block_tiles, block_masks};
    const BlockSelection selection = trained_.view();
    build_block_lists(stream, {lists, selection, grid});
    sparse_attention_forward(stream, {.o = x_.o,
                                      .lse = x_.lse,
                                      .q = x_.q,
                                      .k = x_.k,
                                      .v = x_.v,
                                      .grid = grid,
                                      .groups = groups_,
                                      .rule = rule_,
                                      .selection = selection,
                                      .lists = lists,
                                      .ramp = ramp(),
                                      .scale = kScale,
                                      .sink_logits = x_.sink_logits});
  }

  void decode() {
    // Pages lie in the cache in reverse, with a row between two of them.
    for (int64_t p = 0; p < pages_; ++p) {
      page_rows_.as<int32_t>()[static_cast<size_t>(p)] =
          static_cast<int32_t>((pages_ - 1 - p) * (block_ + 1));
    }
    // The interpreter of kernels is slow: it decodes the last tokens only.
    const int64_t first = support::device().kind == DeviceKind::kGpu ? tokens_ - 20 : 0;
    for (int64_t position = 0; position < tokens_; ++position) {
      append(position);
      if (position >= first) {
        select(position);
        attend(position);
      }
      pool(position);
    }
    const int64_t count = tokens_ - first;
    support::expect_close(o_.view().rows(first, count),
                          support::to_doubles(x_.o.view().rows(first, count)), tolerance_of(dtype_),
                          concat(name_of(dtype_), " block ", block_, " keys ", gate_keys_));
  }

 private:
  static constexpr int64_t kGroups = 2;

  void append(int64_t position) {
    for (int64_t c = 0; c < kGroups; ++c) {
      const int64_t row = c * rows_ + position % block_ +
                          page_rows_.as<int32_t>()[static_cast<size_t>(position / block_)];
      copy_row(k_, row, x_.k, position * kKvHeads + groups_[static_cast<size_t>(c)]);
      copy_row(v_, row, x_.v, position * kKvHeads + groups_[static_cast<size_t>(c)]);
    }
  }

  void select(int64_t position) {
    const Tensor qt = of_token(gate_.qt, position);
    const Selection selection(kGroups, 1, rule_.kept);
    decode_select(stream_, {.selection = selection.view(),
                            .spans = spans_,
                            .log_gates = log_gates_,
                            .counts = counts_,
                            .scores = scores_,
                            .qt = qt,
                            .kt = kt_,
                            .page_rows = page_rows_,
                            .positions = support::from_ints({static_cast<int32_t>(position)}),
                            .block = block_,
                            .rule = rule_,
                            .gate_keys = gate_keys_,
                            .ramp = ramp(),
                            .tree = tree_,
                            .nodes = nodes_});
    for (int64_t c = 0; c < kGroups; ++c) {
      EXPECT_TRUE(
          std::ranges::equal(selection.row_of_blocks(c, 0), trained_.row_of_blocks(c, position)))
          << "position " << position;
    }
  }

  void attend(int64_t position) {
    decode_attention(stream_, {.o = Sequence::token(o_, position),
                               .lse = lse_,
                               .q = Sequence::token(x_.q, position),
                               .k = k_,
                               .v = v_,
                               .spans = spans_,
                               .log_gates = log_gates_,
                               .counts = counts_,
                               .groups = groups_,
                               .kv_heads = kKvHeads,
                               .scale = kScale,
                               .sink_logits = x_.sink_logits});
    for (const int32_t group : groups_) {
      const auto head = static_cast<size_t>(2 * group);
      const auto in_training = head * tokens_ + static_cast<size_t>(position);
      EXPECT_NEAR(lse_.as<float>()[head], x_.lse.as<float>()[in_training], 1e-5);
    }
  }

  void pool(int64_t position) {
    const Tensor k0 = of_token(gate_.k0, position);
    const int64_t part = block_ / gate_keys_;
    page_gate(stream_, {.state = state_,
                        .kbar = kbar_,
                        .k0 = k0,
                        .r = gate_.r,
                        .positions = support::from_ints({static_cast<int32_t>(position)}),
                        .part = part});
    const bool complete = position % part == part - 1;
    for (int64_t c = 0; complete && c < kGroups; ++c) {
      const auto pooled = support::to_doubles(kbar_.view().rows(c, 1));
      for (int64_t i = 0; i < kGateDim; ++i) {
        kt_.as<float>()[static_cast<size_t>((c * pages_ * gate_keys_ + position / part) * kGateDim +
                                            i)] =
            static_cast<float>(pooled[static_cast<size_t>(i)]);
      }
    }
    if (complete && tree_.enabled()) {
      insert_pages(stream_,
                   {.nodes = nodes_,
                    .kt = kt_,
                    .places = support::from_ints({0}),
                    .numbers = support::from_ints({static_cast<int32_t>(position / block_)}),
                    .sink_blocks = rule_.sink_blocks,
                    .tree = tree_});
    }
  }

  GateRamp ramp() const { return {0.9f, gate_.widths}; }
  /// [groups, 1, n] of [groups, tokens, n].
  static Tensor of_token(const Tensor& x, int64_t position) {
    Tensor row(x.dtype(), {kGroups, 1, x.shape()[2]});
    for (int64_t c = 0; c < kGroups; ++c) copy_row(row, c, x, c * x.shape()[1] + position);
    return row;
  }

  DType dtype_;
  int64_t tokens_;
  int64_t block_;
  BlockRule rule_;
  int64_t gate_keys_;
  TreeSearch tree_;
  Segments segments_;
  Sequence x_;
  Gate gate_;
  Selection trained_;
  std::vector<int32_t> groups_{1, 2};

  // The cache, full of what must never be read, and what one step needs.
  int64_t pages_;
  int64_t rows_;
  int64_t most_;
  Tensor page_rows_{DType::kI32, {1, pages_}};
  Tensor k_ = support::filled(dtype_, {kGroups, 1, rows_, kDim}, 1e6);
  Tensor v_ = support::filled(dtype_, {kGroups, 1, rows_, kDim}, 1e6);
  Tensor kt_ = support::filled(DType::kF32, {kGroups, 1, pages_* gate_keys_, kGateDim}, 1e6);
  Tensor nodes_ = support::filled(DType::kF32, {kGroups, 1, tree_rows(pages_), kGateDim}, 1e6);
  Tensor state_ = support::filled(DType::kF32, {kGroups, 1, kGateDim + 2}, 1e6);
  Tensor kbar_{dtype_, {kGroups, 1, kGateDim}};
  Tensor spans_{DType::kI32, {kGroups, 1, most_, 2}};
  Tensor log_gates_{DType::kF32, {kGroups, 1, most_}};
  Tensor counts_{DType::kI32, {kGroups, 1}};
  Tensor scores_{DType::kF32, {kGroups, 1, pages_}};
  Tensor o_ = support::filled(dtype_, {tokens_, kHeads, kDim}, 0);
  Tensor lse_{DType::kF32, {1, kHeads}};
  Stream stream_{support::device(), 2};
};

TEST(DecodeAttention, PagesGiveWhatTrainingGives) {
  const bool slow = support::device().kind == DeviceKind::kGpu;
  for (const DType dtype : support::dtypes()) {
    for (const int64_t gate_keys : {1, 2}) {
      if (slow && (dtype == DType::kBF16) != (gate_keys == 2)) continue;
      for (const BlockRule rule : {BlockRule{1, 2, 3}, BlockRule{0, 1, 1}, BlockRule{2, 1, 50}}) {
        PagedDecoding decoding(dtype, 16, rule, gate_keys);
        decoding.train();
        decoding.decode();
      }
    }
  }
}

TEST(DecodeAttention, PagesOfATreeGiveWhatTrainingGives) {
  for (const BlockRule rule : {BlockRule{1, 2, 3}, BlockRule{0, 1, 1}}) {
    const int64_t tokens = support::device().kind == DeviceKind::kGpu ? 450 : 1500;
    PagedDecoding decoding(DType::kF32, 16, rule, 1, {.radix = 4, .beam = 1}, tokens);
    decoding.train();
    decoding.decode();
  }
}

TEST(DecodeAttention, SpansOfAWindow) {
  const WindowCache cache{4, 2, 1};
  const auto rows = [&](int64_t position) {
    std::array<CacheSpan, 3> spans;
    std::vector<int64_t> all;
    const int64_t count = cache.spans(position, spans);
    for (size_t s = 0; s < static_cast<size_t>(count); ++s) {
      for (int32_t i = 0; i < spans[s].rows; ++i) all.push_back(spans[s].first_row + i);
    }
    return all;
  };
  using Rows = std::vector<int64_t>;
  EXPECT_EQ(rows(0), (Rows{0}));
  EXPECT_EQ(rows(3), (Rows{0, 1, 2, 3}));
  EXPECT_EQ(rows(6), (Rows{0, 1, 3, 4, 5, 6}));
  EXPECT_EQ(rows(8), (Rows{0, 1, 5, 6, 2, 3}));
}

TEST(DecodeAttention, SaysWhatIsWrong) {
  Stream plan(Device{DeviceKind::kPlan});
  const auto floats = [](Shape shape) { return support::plan_view(DType::kF32, shape); };
  const auto ints = [](Shape shape) { return support::plan_view(DType::kI32, shape); };
  const std::vector<int32_t> groups{1};
  const auto attend = [&](Stream& stream, TensorView k, TensorView spans, TensorView counts) {
    decode_attention(stream, {.o = floats({1, 4, 8}),
                              .lse = {},
                              .q = floats({1, 4, 8}),
                              .k = k,
                              .v = floats({1, 1, 32, 8}),
                              .spans = spans,
                              .log_gates = {},
                              .counts = counts,
                              .groups = groups,
                              .kv_heads = 2,
                              .scale = 1});
  };
  support::expect_error(
      [&] {
        attend(plan, floats({2, 1, 32, 8}), ints({1, 1, 3, 2}), ints({1, 1}));
      },
      "decode_attention: k is f32 [2, 1, 32, 8], expected f32 [groups, sequences, rows, d] = "
      "[1, 1, 32, 8]");
  support::expect_error(
      [&] {
        attend(plan, floats({1, 1, 32, 8}), ints({2, 1, 3, 2}), ints({2, 1}));
      },
      "decode_attention: spans is [2, 1, 3, 2], expected [1 groups or 1, sequences, most, 2]");
  support::expect_error(
      [&] {
        page_gate(plan, {.state = floats({1, 2, 9}),
                         .kbar = floats({1, 2, 8}),
                         .k0 = floats({1, 2, 8}),
                         .r = floats({1, 8}),
                         .positions = ints({2}),
                         .part = 16});
      },
      "page_gate: state is f32 [1, 2, 9], expected f32 [groups, sequences, d + 2] = [1, 2, 10]");
}

TEST(DecodeAttention, ASpanMustLieInTheCache) {
  Stream stream(support::device(), 1);
  const Tensor q(DType::kF32, {1, 2, 8});
  const Tensor k(DType::kF32, {1, 1, 32, 8});
  const Tensor spans(DType::kI32, {1, 1, 1, 2});
  const Tensor counts = support::filled(DType::kI32, {1, 1}, 1);
  spans.as<int32_t>()[0] = 20;
  spans.as<int32_t>()[1] = 13;
  const std::vector<int32_t> groups{0};
  support::expect_kernel_error(
      [&] {
        decode_attention(stream, {.o = q,
                                  .lse = {},
                                  .q = q,
                                  .k = k,
                                  .v = k,
                                  .spans = spans,
                                  .log_gates = {},
                                  .counts = counts,
                                  .groups = groups,
                                  .kv_heads = 1,
                                  .scale = 1});
      },
      "decode_attention: a span has rows 20 to 32, expected 0 to 31",
      "decode_attention: a span has rows outside of the cache");
}

}  // namespace
}  // namespace tessera
