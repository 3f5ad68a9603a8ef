#include <numeric>

#include "kernels/segment_grid.h"

namespace tessera::cpu {

namespace {

void check_starts(std::span<const int32_t> starts, int64_t tokens) {
  CHECK(starts.front() == 0, "build_segment_grid: starts[0] is ", starts.front(), ", expected 0");
  for (size_t s = 1; s < starts.size(); ++s) {
    CHECK(starts[s] >= starts[s - 1], "build_segment_grid: starts[", s, "] is ", starts[s],
          ", expected at least starts[", s - 1, "] = ", starts[s - 1]);
  }
  CHECK(starts.back() == tokens, "build_segment_grid: the last of starts is ", starts.back(),
        ", expected tokens = ", tokens);
}

}  // namespace

void build_segment_grid(ThreadPool& /*threads*/, const BuildSegmentGrid& a) {
  const auto starts = a.starts.as<int32_t>();
  check_starts(starts, a.positions.elements());
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

}  // namespace tessera::cpu
