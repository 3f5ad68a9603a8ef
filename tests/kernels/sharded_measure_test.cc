#include <gtest/gtest.h>

#include "kernels/gate_measure.h"
#include "tests/reference/gate_measure.h"
#include "tests/support/sharded_grid.h"

// Ranks measure their own tokens, with tiles that are cut: the sums are those of all tokens.

namespace tessera {
namespace {

using support::ShardedGrid;
using support::Share;
using support::Sparse;
using support::SparseCase;
using support::Sum;
using support::Tensor;

/// Every 31st token.
std::vector<int64_t> sampled(const Sparse& x) {
  std::vector<int64_t> tokens;
  for (int64_t i = 3; i < x.segments.tokens(); i += 31) tokens.push_back(i);
  return tokens;
}

/// Block lists with their own memory.
struct Lists {
  Lists(const SegmentGrid& grid, int64_t capacity)
      : tensors{Tensor(DType::kI32, {2, grid.max_tiles() + 1}),
                Tensor(DType::kI32, {2, capacity}),
                Tensor(DType::kU16, {2, capacity}),
                Tensor(DType::kI32, {2, grid.max_blocks() + 1}),
                Tensor(DType::kI32, {2, capacity}),
                Tensor(DType::kU16, {2, capacity})} {}
  BlockLists view() const {
    return {tensors[0], tensors[1], tensors[2], tensors[3], tensors[4], tensors[5]};
  }
  std::array<Tensor, 6> tensors;
};

/// What the ranks of one layout found, added up.
struct Total {
  explicit Total(const Sparse& x) : counts{{2, x.segments.grid().max_blocks(), 2}} {}

  Sum figures{{2, GateFigures::kSize}};
  Sum maps{{2, kMapBins, kMapBins + 1}};
  Sum counts;

  void measure(const Sparse& x, const support::Selection& of_all, const Share& share) {
    Stream stream(support::device(), 2);
    const ShardedGrid sharded(stream, x.segments, share, {.whole = true});
    const SegmentGrid& grid = sharded.grid();
    const std::vector<int64_t>& tokens = sharded.query_tokens();
    const auto of = [&](const ConstTensorView& all, int axis) {
      return support::take_rows(support::copy_of(all), axis, tokens);
    };
    const Tensor blocks = of(of_all.view().blocks, 1);
    const Tensor scores = of(of_all.view().scores, 1);
    const Tensor chosen = of(of_all.view().counts, 1);
    const BlockSelection selection{blocks, scores, chosen};
    const Lists lists(grid, piece_list_capacity(grid.max_tiles(), 301, x.c.block, x.c.rule));
    build_block_lists(stream, {lists.view(), selection, grid});
    std::vector<int32_t> rows;
    for (size_t row = 0; row < tokens.size(); ++row) {
      if (tokens[row] % 31 != 3) continue;
      rows.push_back(static_cast<int32_t>(row));
      rows.push_back(static_cast<int32_t>(tokens[row]));
    }
    const Tensor samples = support::from_ints(rows);
    const Tensor q = of(x.q.view(), 0);
    const Tensor k = support::take_rows(x.k, 0, sharded.key_tokens());
    const Tensor lse = of(x.lse.view(), 1);
    const Tensor block_lse = of(x.block_lse.view(), 1);
    const Tensor own_figures(DType::kF32, figures.shape);
    const Tensor own_map(DType::kF32, maps.shape);
    const Tensor own_counts(DType::kF32, {2, grid.max_blocks(), 2});
    measure_gate_rows(stream, {.figures = own_figures,
                               .map = own_map,
                               .samples = samples.view().reshape({samples.shape()[0] / 2, 2}),
                               .sequence_length = x.segments.tokens(),
                               .q = q,
                               .k = k,
                               .lse = lse,
                               .grid = grid,
                               .groups = x.groups,
                               .rule = x.c.rule,
                               .scale = static_cast<float>(x.shape.scale),
                               .sink_logits = x.sink_logits,
                               .selection = selection,
                               .block_lse = block_lse,
                               .ramp = {static_cast<float>(x.c.strength), x.widths}});
    measure_gate_lists(stream, {own_figures, own_counts, lists.view(), grid, x.c.rule});
    figures.add(own_figures);
    maps.add(own_map);
    add_counts(own_counts);
  }

  // Ranks have room for different numbers of blocks; the blocks have the same numbers.
  void add_counts(const Tensor& part) {
    const auto found = support::to_doubles(part);
    const int64_t room = part.shape()[1];
    const int64_t all = counts.shape[1];
    for (int64_t i = 0; i < 4 * std::min(all, room); ++i) {
      const int64_t group = i % 2;
      counts.values[static_cast<size_t>(group * all * 2 + i / 2)] +=
          found[static_cast<size_t>(group * room * 2 + i / 2)];
    }
  }
};

void expect_whole(const Sparse& x, const Total& total, int64_t group, bool tiles_are_cut) {
  reference::RowMeasures rows(x);
  rows.add(group, sampled(x), true);
  reference::ListMeasures lists(x, group);
  for (int64_t i = 0; i < GateFigures::kBlocks; ++i) {
    // Where tiles are cut there are more of them, and each has its own list.
    if (tiles_are_cut && i >= GateFigures::kTiles && i <= GateFigures::kExecuted) continue;
    const double wanted = i < GateFigures::kTiles ? rows.figures[i] : lists.figures[i];
    const double found = total.figures.values[static_cast<size_t>(group * GateFigures::kSize + i)];
    EXPECT_NEAR(found, wanted, 2e-5 * std::max(1.0, wanted)) << "figure " << i;
  }
  for (const auto& [block, pair] : lists.counts) {
    const auto at = static_cast<size_t>((group * total.counts.shape[1] + block) * 2);
    EXPECT_EQ(total.counts.values[at], pair.first) << "block " << block;
    EXPECT_EQ(total.counts.values[at + 1], pair.second) << "block " << block;
  }
  for (const auto& [place, mass] : rows.map) {
    const int64_t at = (group * kMapBins + place.first) * (kMapBins + 1) + place.second;
    EXPECT_NEAR(total.maps.values[static_cast<size_t>(at)], mass, 1e-5);
  }
}

TEST(ShardedMeasure, RanksAddUpToTheWhole) {
  const Sparse x({support::sharded_lengths(), 16, 4, 2, 24, {1, 2, 3}, 0.7, true});
  const support::Selection selection = reference::selection_of(x.scores, x.attended());
  x.run(2, /*backward=*/false);
  for (const auto& shares : support::share_layouts(x.segments.tokens())) {
    Total total(x);
    for (const Share& share : shares) total.measure(x, selection, share);
    for (int64_t group = 0; group < 2; ++group) {
      expect_whole(x, total, group, /*tiles_are_cut=*/shares.size() > 1);
    }
  }
}

}  // namespace
}  // namespace tessera
