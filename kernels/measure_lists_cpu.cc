#include <algorithm>
#include <array>
#include <bit>
#include <vector>

#include "kernels/gate_measure.h"

namespace tessera::cpu {

namespace {

constexpr int64_t kTilesPerTask = 256;
constexpr int64_t kDistances = GateFigures::kDistances;

using Counts = std::array<int64_t, GateFigures::kBlocks - GateFigures::kTiles>;

int64_t& at(Counts& counts, int64_t place) {
  return counts[static_cast<size_t>(place - GateFigures::kTiles)];
}

int64_t distance_bin(int64_t distance) {
  return std::min(kDistances - 1,
                  static_cast<int64_t>(std::bit_width(static_cast<uint64_t>(distance))) - 1);
}

/// Candidates of a token whose own block is `own`, by distance.
void count_candidates(const BlockRule& rule, int64_t own, int64_t tokens, Counts& counts) {
  const int64_t nearest = rule.window_blocks;
  const int64_t farthest = own - rule.sink_blocks;
  for (int64_t bin = 0; bin < kDistances; ++bin) {
    const int64_t end = bin == kDistances - 1 ? farthest + 1 : int64_t{2} << bin;
    const int64_t first = std::max(nearest, int64_t{1} << bin);
    const int64_t last = std::min(farthest + 1, end);
    if (first < last) at(counts, GateFigures::kCandidatesAt + bin) += (last - first) * tokens;
  }
}

void count_tile(const MeasureGateLists& a, int64_t group, int64_t tile, Counts& counts) {
  const GridRange range = find_tile(a.grid, tile);
  const int64_t own = range.position / a.grid.block;
  const int64_t offsets = a.lists.tile_offsets.shape()[1];
  const int64_t entries = a.lists.tile_blocks.shape()[1];
  const int32_t* bounds = a.lists.tile_offsets.as<int32_t>().data() + group * offsets + tile;
  const int32_t* blocks = a.lists.tile_blocks.as<int32_t>().data() + group * entries;
  const uint16_t* masks = a.lists.tile_masks.as<uint16_t>().data() + group * entries;
  const bool drops = a.rule.candidates(own) > a.rule.kept;
  for (int64_t i = bounds[0]; i < bounds[1]; ++i) {
    const int chosen = std::popcount(masks[i]);
    at(counts, GateFigures::kChosen) += chosen;
    if (drops) at(counts, GateFigures::kChosenAt + distance_bin(own - blocks[i])) += chosen;
  }
  at(counts, GateFigures::kTiles) += 1;
  at(counts, GateFigures::kUnion) += bounds[1] - bounds[0];
  at(counts, GateFigures::kExecuted) += (bounds[1] - bounds[0]) * range.tokens;
  if (drops) count_candidates(a.rule, own, range.tokens, counts);
}

/// Tokens at positions from `position` on of a segment.
int64_t tokens_from(const Stretches& pieces, int64_t segment, int64_t position) {
  int64_t tokens = 0;
  for (int64_t i = pieces.begin_of(segment); i < pieces.size() && pieces.segment(i) == segment;
       ++i) {
    tokens += std::max<int64_t>(0, pieces.end(i) - std::max(position, pieces.first(i)));
  }
  return tokens;
}

void count_block(const MeasureGateLists& a, int64_t group, int64_t block, int64_t blocks) {
  float* const to = a.counts.as<float>().data() + (group * a.counts.shape()[1] + block) * 2;
  to[0] = to[1] = 0;
  if (block >= blocks) return;
  const auto block_starts = a.grid.block_starts.as<int32_t>();
  const int64_t segment = range_of(block_starts, block);
  const int64_t number = block - block_starts[static_cast<size_t>(segment)];
  if (number < a.rule.sink_blocks) return;
  // From there on a token has the block as a candidate, and more candidates than it may keep.
  const int64_t own = std::max(number + a.rule.window_blocks,
                               a.rule.kept + a.rule.sink_blocks + a.rule.window_blocks);
  to[0] = static_cast<float>(tokens_from(pieces_of(a.grid), segment, own * a.grid.block));
  const int64_t entries = a.lists.block_tiles.shape()[1];
  const int32_t* bounds =
      a.lists.block_offsets.as<int32_t>().data() + group * a.lists.block_offsets.shape()[1] + block;
  const int32_t* tiles = a.lists.block_tiles.as<int32_t>().data() + group * entries;
  const uint16_t* masks = a.lists.block_masks.as<uint16_t>().data() + group * entries;
  int64_t chosen = 0;
  for (int64_t i = bounds[0]; i < bounds[1]; ++i) {
    const int64_t of_tile = find_tile(a.grid, tiles[i]).position / a.grid.block;
    if (a.rule.candidates(of_tile) > a.rule.kept) chosen += std::popcount(masks[i]);
  }
  to[1] = static_cast<float>(chosen);
}

}  // namespace

void measure_gate_lists(ThreadPool& threads, const MeasureGateLists& a) {
  const int64_t groups = a.lists.tile_offsets.shape()[0];
  const int64_t tiles = tile_count(a.grid);
  const int64_t tasks = (tiles + kTilesPerTask - 1) / kTilesPerTask;
  std::vector<Counts> counts(static_cast<size_t>(groups * tasks));
  threads.for_each(groups * tasks, [&](int64_t task) {
    const int64_t first = task % tasks * kTilesPerTask;
    for (int64_t tile = first; tile < std::min(tiles, first + kTilesPerTask); ++tile) {
      count_tile(a, task / tasks, tile, counts[static_cast<size_t>(task)]);
    }
  });
  const auto figures = a.figures.as<float>();
  for (int64_t group = 0; group < groups; ++group) {
    Counts sums{};
    for (int64_t task = 0; task < tasks; ++task) {
      const Counts& part = counts[static_cast<size_t>(group * tasks + task)];
      for (size_t i = 0; i < sums.size(); ++i) sums[i] += part[i];
    }
    for (size_t i = 0; i < sums.size(); ++i) {
      figures[static_cast<size_t>(group * GateFigures::kSize + GateFigures::kTiles) + i] +=
          static_cast<float>(sums[i]);
    }
  }
  const int64_t blocks = block_count(a.grid);
  const int64_t places = a.counts.shape()[1];
  threads.for_each(groups * places,
                   [&](int64_t i) { count_block(a, i / places, i % places, blocks); });
}

void measure_gate_blocks(ThreadPool& /*threads*/, const MeasureGateBlocks& a) {
  const int64_t groups = a.counts.shape()[0];
  const int64_t blocks = a.counts.shape()[1];
  const auto counts = a.counts.as<float>();
  for (int64_t group = 0; group < groups; ++group) {
    int64_t counted = 0;
    int64_t never = 0;
    int64_t hot = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      const auto pair = static_cast<size_t>(2 * (group * blocks + b));
      const float tokens = counts[pair];
      if (tokens < GateFigures::kFewest) continue;
      ++counted;
      never += counts[pair + 1] == 0;
      hot += 2 * counts[pair + 1] >= tokens;
    }
    float* const to = a.figures.as<float>().data() + group * GateFigures::kSize;
    to[GateFigures::kBlocks] += static_cast<float>(counted);
    to[GateFigures::kNever] += static_cast<float>(never);
    to[GateFigures::kHot] += static_cast<float>(hot);
  }
}

}  // namespace tessera::cpu
