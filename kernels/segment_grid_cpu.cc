#include <numeric>

#include "kernels/segment_grid.h"

namespace tessera::cpu {

namespace {

void check_ascending(const char* who, const char* name, std::span<const int32_t> starts) {
  CHECK(starts.front() == 0, who, ": ", name, "[0] is ", starts.front(), ", expected 0");
  for (size_t s = 1; s < starts.size(); ++s) {
    CHECK(starts[s] >= starts[s - 1], who, ": ", name, "[", s, "] is ", starts[s],
          ", expected at least ", name, "[", s - 1, "] = ", starts[s - 1]);
  }
}

/// Throws unless pieces or runs ascend and lie in their segments.
void check_stretches(const char* kind, const Stretches& x, std::span<const int32_t> block_starts,
                     int64_t block) {
  const auto segments = static_cast<int64_t>(block_starts.size()) - 1;
  int64_t segment = 0;
  int64_t end = 0;  // of the last one that is not empty, in its segment
  for (int64_t i = 0; i < x.size(); ++i) {
    CHECK(x.segment(i) >= segment && x.segment(i) < segments, "build_sharded_grid: ", kind, " ", i,
          " is of segment ", x.segment(i), ", expected ", segment, " to ", segments - 1);
    if (x.segment(i) > segment) end = 0;
    segment = x.segment(i);
    if (x.count(i) == 0) continue;
    CHECK(x.first(i) >= end, "build_sharded_grid: ", kind, " ", i, " begins at position ",
          x.first(i), ", expected at least ", end);
    end = x.end(i);
    const auto s = static_cast<size_t>(segment);
    const int64_t room = (block_starts[s + 1] - block_starts[s]) * block;
    CHECK(end <= room, "build_sharded_grid: ", kind, " ", i, " ends at position ", end,
          ", but the blocks of its segment at ", room);
  }
}

}  // namespace

void build_segment_grid(ThreadPool& /*threads*/, const BuildSegmentGrid& a) {
  const auto starts = a.starts.as<int32_t>();
  check_ascending("build_segment_grid", "starts", starts);
  CHECK(starts.back() == a.positions.elements(), "build_segment_grid: the last of starts is ",
        starts.back(), ", expected tokens = ", a.positions.elements());
  const auto positions = a.positions.as<int32_t>();
  const auto tile_starts = a.tile_starts.as<int32_t>();
  const auto block_starts = a.block_starts.as<int32_t>();
  const auto parts = [](int64_t length, int64_t part) {
    return static_cast<int32_t>((length + part - 1) / part);
  };
  tile_starts[0] = 0;
  block_starts[0] = 0;
  for (size_t s = 0; s + 1 < starts.size(); ++s) {
    const int64_t length = starts[s + 1] - starts[s];
    tile_starts[s + 1] = tile_starts[s] + parts(length, SegmentGrid::kTile);
    block_starts[s + 1] = block_starts[s] + parts(length, a.block);
    std::iota(positions.begin() + starts[s], positions.begin() + starts[s + 1], 0);
  }
}

void build_sharded_grid(ThreadPool& /*threads*/, const BuildShardedGrid& a) {
  const Stretches pieces{a.starts.as<int32_t>(), a.firsts.as<int32_t>(),
                         a.piece_segments.as<int32_t>()};
  const Stretches runs{a.run_starts.as<int32_t>(), a.run_firsts.as<int32_t>(),
                       a.run_segments.as<int32_t>()};
  const auto block_starts = a.block_starts.as<int32_t>();
  check_ascending("build_sharded_grid", "starts", pieces.starts);
  check_ascending("build_sharded_grid", "run_starts", runs.starts);
  check_ascending("build_sharded_grid", "block_starts", block_starts);
  CHECK(pieces.starts.back() == a.positions.elements(),
        "build_sharded_grid: the last of starts is ", pieces.starts.back(),
        ", expected tokens = ", a.positions.elements());
  CHECK(runs.starts.back() <= a.key_rows, "build_sharded_grid: the last of run_starts is ",
        runs.starts.back(), ", expected at most key_rows = ", a.key_rows);
  check_stretches("piece", pieces, block_starts, a.block);
  check_stretches("run", runs, block_starts, a.block);
  const auto positions = a.positions.as<int32_t>();
  const auto tile_starts = a.tile_starts.as<int32_t>();
  constexpr int64_t kTile = SegmentGrid::kTile;
  tile_starts[0] = 0;
  for (int64_t i = 0; i < pieces.size(); ++i) {
    const auto p = static_cast<size_t>(i);
    const int64_t tiles = (pieces.end(i) + kTile - 1) / kTile - pieces.first(i) / kTile;
    tile_starts[p + 1] = tile_starts[p] + static_cast<int32_t>(pieces.count(i) > 0 ? tiles : 0);
    std::iota(positions.begin() + pieces.row(i), positions.begin() + pieces.row(i + 1),
              static_cast<int32_t>(pieces.first(i)));
  }
}

int64_t part_bound(const Stretches& stretches, int64_t length) {
  const int64_t spare = stretches.firsts.empty() ? 1 : 2;
  return stretches.starts.back() / length + spare * stretches.size();
}

StretchPart find_part(const Stretches& stretches, int64_t length, int64_t number) {
  // Stretch i owns the numbers from row(i) / length + spare * i on: never fewer than its parts. One
  // that begins between two cuts may have one part more than its length says.
  const int64_t spare = stretches.firsts.empty() ? 1 : 2;
  int64_t low = 0;
  int64_t high = stretches.size();
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (stretches.row(middle) / length + spare * middle <= number ? low : high) = middle;
  }
  const int64_t cut =
      stretches.first(low) / length + number - stretches.row(low) / length - spare * low;
  const int64_t first = std::max(stretches.first(low), cut * length);
  const int64_t end = std::min(stretches.end(low), (cut + 1) * length);
  return {low, first, std::max<int64_t>(0, end - first)};
}

void check_block_count(const SegmentGrid& grid, const char* who) {
  CHECK(block_count(grid) <= grid.max_blocks(), who, ": the grid has ", block_count(grid),
        " blocks, expected at most key_rows / block + segments = ", grid.max_blocks());
}

GridRange find_block(const SegmentGrid& grid, int64_t block) {
  const auto block_starts = grid.block_starts.as<int32_t>();
  const int64_t segment = range_of(block_starts, block);
  const int64_t number = block - block_starts[static_cast<size_t>(segment)];
  const int64_t position = number * grid.block;
  const Stretches runs = runs_of(grid);
  for (int64_t i = runs.begin_of(segment); i < runs.begin_of(segment + 1); ++i) {
    if (position < runs.first(i) || position >= runs.end(i)) continue;
    const int64_t keys = std::min(grid.block, runs.end(i) - position);
    return {segment, runs.origin(i) + position, keys, number, position};
  }
  return {segment, 0, 0, number, position};
}

}  // namespace tessera::cpu
