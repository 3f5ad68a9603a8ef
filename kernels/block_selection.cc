#include "kernels/block_selection.h"

#include <algorithm>
#include <limits>

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"
#include "kernels/gate_score.h"

namespace tessera {

namespace {

void check_rule(const BlockRule& rule, const char* who) {
  CHECK(rule.sink_blocks >= 0, who, ": sink_blocks is ", rule.sink_blocks, ", expected >= 0");
  CHECK(rule.window_blocks >= 1, who, ": window_blocks is ", rule.window_blocks, ", expected >= 1");
  CHECK(rule.kept >= 1, who, ": kept is ", rule.kept, ", expected >= 1");
}

void check_lists(const BlockLists& lists, const SegmentGrid& grid, int64_t groups) {
  const Shape entries{
      groups, lists.tile_blocks.shape().rank() == 2 ? lists.tile_blocks.shape()[1] : int64_t{0}};
  const Shape tiles{groups, grid.max_tiles() + 1};
  const Shape blocks{groups, grid.max_blocks() + 1};
  const auto expect = [](const TensorView& x, DType dtype, const Shape& shape, const char* name,
                         const char* axes) {
    expect_tensor(x, dtype, shape, concat("build_block_lists: ", name).c_str(), axes);
  };
  expect(lists.tile_offsets, DType::kI32, tiles, "tile_offsets", "[groups, max_tiles + 1]");
  expect(lists.block_offsets, DType::kI32, blocks, "block_offsets", "[groups, max_blocks + 1]");
  expect(lists.tile_blocks, DType::kI32, entries, "tile_blocks", "[groups, capacity]");
  expect(lists.tile_masks, DType::kU16, entries, "tile_masks", "[groups, capacity]");
  expect(lists.block_tiles, DType::kI32, entries, "block_tiles", "[groups, capacity]");
  expect(lists.block_masks, DType::kU16, entries, "block_masks", "[groups, capacity]");
}

}  // namespace

void check_selection(const BlockSelection& selection, int64_t groups, int64_t tokens,
                     const char* who) {
  CHECK(selection.blocks.shape().rank() == 3 && selection.kept() >= 1, who,
        ": selection.blocks is ", selection.blocks.shape(), ", expected [groups, tokens, k + 1]");
  const Shape slots{groups, tokens, selection.kept() + 1};
  const auto what = [who](const char* name) { return concat(who, ": selection.", name); };
  expect_tensor(selection.blocks, DType::kI32, slots, what("blocks").c_str(),
                "[groups, tokens, k + 1]");
  expect_tensor(selection.scores, DType::kF32, slots, what("scores").c_str(),
                "[groups, tokens, k + 1]");
  expect_tensor(selection.counts, DType::kI32, {groups, tokens}, what("counts").c_str(),
                "[groups, tokens]");
}

void score_select(Stream& stream, const ScoreSelect& a) {
  CHECK(a.qt.shape().rank() == 3, "score_select: qt is ", a.qt.shape(),
        ", expected [groups, tokens, gate_dim]");
  CHECK(a.gate_keys >= 1, "score_select: gate_keys is ", a.gate_keys, ", expected >= 1");
  const int64_t groups = a.qt.shape()[0];
  const int64_t gate_dim = a.qt.shape()[2];
  expect_tensor(a.qt, DType::kF32, {groups, a.grid.tokens(), gate_dim}, "score_select: qt",
                "[groups, tokens, gate_dim]");
  expect_tensor(a.kt, DType::kF32, {groups, a.grid.max_blocks() * a.gate_keys, gate_dim},
                "score_select: kt", "[groups, max_blocks * gate_keys, gate_dim]");
  check_rule(a.rule, "score_select");
  check_selection(a.selection, groups, a.grid.tokens(), "score_select");
  CHECK(a.selection.kept() == a.rule.kept, "score_select: selection has ", a.selection.kept(),
        " slots, expected rule.kept = ", a.rule.kept);
  check_tree(a.tree, a.gate_keys, "score_select");
  if (a.tree.enabled()) {
    expect_tensor(a.nodes, DType::kF32, {groups, tree_rows(a.grid.max_blocks()), gate_dim},
                  "score_select: nodes", "[groups, tree_rows(max_blocks), gate_dim]");
  }
  if (stream.on(DeviceKind::kCpu)) cpu::score_select(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::score_select(stream, a);
  }
}

void build_block_lists(Stream& stream, const BuildBlockLists& a) {
  CHECK(a.selection.blocks.shape().rank() == 3, "build_block_lists: selection.blocks is ",
        a.selection.blocks.shape(), ", expected [groups, tokens, k + 1]");
  const int64_t groups = a.selection.blocks.shape()[0];
  check_selection(a.selection, groups, a.grid.tokens(), "build_block_lists");
  check_lists(a.lists, a.grid, groups);
  if (stream.on(DeviceKind::kCpu)) cpu::build_block_lists(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::build_block_lists(stream, a);
  }
}

int64_t choose_blocks(std::span<const float> z, int64_t first_block, std::span<int32_t> blocks,
                      std::span<float> scores) {
  CHECK(blocks.size() >= 2 && blocks.size() == scores.size(), "choose_blocks: blocks has ",
        blocks.size(), " slots and scores ", scores.size(), ", expected k + 1 >= 2 of both");
  const auto better = [&](int32_t a, int32_t b) {
    const int32_t left = score_key(z[static_cast<size_t>(a)]);
    const int32_t right = score_key(z[static_cast<size_t>(b)]);
    return left > right || (left == right && a > b);
  };
  // A heap of the best k + 1 so far, the worst of them in front.
  const size_t kept = blocks.size() - 1;
  size_t size = 0;
  for (size_t i = 0; i < z.size(); ++i) {
    const auto candidate = static_cast<int32_t>(i);
    if (size <= kept) {
      blocks[size++] = candidate;
      std::push_heap(blocks.begin(), blocks.begin() + static_cast<int64_t>(size), better);
    } else if (better(candidate, blocks[0])) {
      std::pop_heap(blocks.begin(), blocks.end(), better);
      blocks[kept] = candidate;
      std::push_heap(blocks.begin(), blocks.end(), better);
    }
  }
  if (size > kept) std::pop_heap(blocks.begin(), blocks.end(), better);
  const size_t count = std::min(size, kept);
  std::sort(blocks.begin(), blocks.begin() + static_cast<int64_t>(count));
  for (size_t s = 0; s <= kept; ++s) {
    const bool used = s < count || (s == kept && size > kept);
    scores[s] = used ? score_of_key(score_key(z[static_cast<size_t>(blocks[s])])) : 0;
    blocks[s] = used ? blocks[s] + static_cast<int32_t>(first_block) : -1;
  }
  return static_cast<int64_t>(count);
}

int64_t block_list_capacity(int64_t tokens, int64_t block, const BlockRule& rule) {
  check_rule(rule, "block_list_capacity");
  CHECK(block >= SegmentGrid::kTile && block % SegmentGrid::kTile == 0,
        "block_list_capacity: block is ", block, ", expected a multiple of ", SegmentGrid::kTile);
  int64_t entries = 0;
  for (int64_t first = 0; first < tokens; first += SegmentGrid::kTile) {
    const int64_t candidates = rule.candidates(first / block);
    entries +=
        rule.kept <= candidates / SegmentGrid::kTile ? rule.kept * SegmentGrid::kTile : candidates;
  }
  CHECK(entries <= std::numeric_limits<int32_t>::max(), "block_list_capacity: ", tokens,
        " tokens need ", entries, " entries, expected less than 2^31");
  return entries;
}

int64_t piece_list_capacity(int64_t tiles, int64_t segment_tokens, int64_t block,
                            const BlockRule& rule) {
  check_rule(rule, "piece_list_capacity");
  CHECK(block >= SegmentGrid::kTile && block % SegmentGrid::kTile == 0,
        "piece_list_capacity: block is ", block, ", expected a multiple of ", SegmentGrid::kTile);
  const int64_t candidates = rule.candidates((segment_tokens - 1) / block);
  const int64_t of_tile =
      rule.kept <= candidates / SegmentGrid::kTile ? rule.kept * SegmentGrid::kTile : candidates;
  CHECK(tiles * of_tile <= std::numeric_limits<int32_t>::max(), "piece_list_capacity: ", tiles,
        " tiles need ", tiles * of_tile, " entries, expected less than 2^31");
  return tiles * of_tile;
}

int64_t count_gate_rows(std::span<const int32_t> starts, int64_t block, const BlockRule& rule,
                        std::span<const int32_t> firsts) {
  check_rule(rule, "count_gate_rows");
  CHECK(block >= 1, "count_gate_rows: block is ", block, ", expected >= 1");
  if (rule.kept < 2) return 0;
  // The first block with two candidates, and all behind it.
  const int64_t hidden = (rule.sink_blocks + rule.window_blocks + 1) * block;
  const cpu::Stretches pieces{starts, firsts, {}};
  int64_t rows = 0;
  for (int64_t p = 0; p < pieces.size(); ++p) {
    rows += std::max<int64_t>(0, pieces.end(p) - std::max(pieces.first(p), hidden));
  }
  return rows;
}

}  // namespace tessera
