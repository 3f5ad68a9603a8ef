#pragma once

#include <vector>

#include "kernels/segment_grid.h"
#include "tests/support/random_tensor.h"

namespace tessera::support {

/// A segment grid made from the lengths of its segments, token by token, with its own memory.
class Segments {
 public:
  Segments(const std::vector<int64_t>& lengths, int64_t block)
      : starts_(from_ints(starts_of(lengths, 1, false))),
        tile_starts_(from_ints(starts_of(lengths, SegmentGrid::kTile, true))),
        block_starts_(from_ints(starts_of(lengths, block, true))),
        positions_(from_ints(positions_of(lengths))),
        grid_{.starts = starts_.view(),
              .positions = positions_.view(),
              .tile_starts = tile_starts_.view(),
              .block_starts = block_starts_.view(),
              .block = block} {
    for (size_t s = 0; s < lengths.size(); ++s) {
      for (int64_t i = 0; i < lengths[s]; ++i) segment_of_token_.push_back(static_cast<int64_t>(s));
    }
  }

  const SegmentGrid& grid() const { return grid_; }
  int64_t tokens() const { return grid_.tokens(); }
  int64_t block() const { return grid_.block; }
  int64_t segment(int64_t token) const { return segment_of_token_[static_cast<size_t>(token)]; }
  int64_t start(int64_t segment) const { return number(starts_, segment); }
  int64_t length(int64_t segment) const { return start(segment + 1) - start(segment); }
  /// The token's own block, within its segment.
  int64_t own_block(int64_t token) const { return number(positions_, token) / grid_.block; }
  /// Number over all segments.
  int64_t first_block(int64_t segment) const { return number(block_starts_, segment); }
  int64_t tile(int64_t token) const {
    return number(tile_starts_, segment(token)) + number(positions_, token) / SegmentGrid::kTile;
  }
  int64_t position(int64_t token) const { return number(positions_, token); }
  const Tensor& starts() const { return starts_; }

 private:
  static std::vector<int32_t> starts_of(const std::vector<int64_t>& lengths, int64_t unit,
                                        bool round_up) {
    std::vector<int32_t> starts{0};
    for (const int64_t length : lengths) {
      const int64_t units = round_up ? (length + unit - 1) / unit : length;
      starts.push_back(starts.back() + static_cast<int32_t>(units));
    }
    return starts;
  }
  static std::vector<int32_t> positions_of(const std::vector<int64_t>& lengths) {
    std::vector<int32_t> positions;
    for (const int64_t length : lengths) {
      for (int64_t i = 0; i < length; ++i) positions.push_back(static_cast<int32_t>(i));
    }
    return positions;
  }
  static int64_t number(const Tensor& tensor, int64_t i) {
    return tensor.as<int32_t>()[static_cast<size_t>(i)];
  }

  Tensor starts_;
  Tensor tile_starts_;
  Tensor block_starts_;
  Tensor positions_;
  SegmentGrid grid_;
  std::vector<int64_t> segment_of_token_;
};

}  // namespace tessera::support
