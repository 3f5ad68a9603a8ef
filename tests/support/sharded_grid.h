#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/segment_grid.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"
#include "tests/support/segments.h"

namespace tessera::support {

/// [begin, end) of the tokens of all segments, which are numbered from end to end.
struct TokenRange {
  int64_t begin;
  int64_t end;
};
/// The tokens of one rank, ascending.
using Share = std::vector<TokenRange>;

/// `tokens` cut into `ranks` ranges, wherever the cuts fall.
inline std::vector<Share> contiguous_shares(int64_t tokens, int64_t ranks) {
  std::vector<Share> shares;
  for (int64_t r = 0; r < ranks; ++r) {
    shares.push_back({{r * tokens / ranks, (r + 1) * tokens / ranks}});
  }
  return shares;
}
/// Chunks r and 2 ranks - 1 - r of 2 ranks belong to rank r.
inline std::vector<Share> zigzag_shares(int64_t tokens, int64_t ranks) {
  const std::vector<Share> chunks = contiguous_shares(tokens, 2 * ranks);
  std::vector<Share> shares;
  for (int64_t r = 0; r < ranks; ++r) {
    shares.push_back(
        {chunks[static_cast<size_t>(r)][0], chunks[static_cast<size_t>(2 * ranks - 1 - r)][0]});
  }
  return shares;
}
/// Ranges of `length` tokens, dealt to the ranks in turn.
inline std::vector<Share> dealt_shares(int64_t tokens, int64_t ranks, int64_t length) {
  std::vector<Share> shares(static_cast<size_t>(ranks));
  for (int64_t i = 0; i * length < tokens; ++i) {
    shares[static_cast<size_t>(i % ranks)].push_back(
        {i * length, std::min(tokens, (i + 1) * length)});
  }
  return shares;
}

/// Segments of lengths that no tile or block divides, an empty one, and one that lies on three
/// ranks or more of the shares below.
inline std::vector<int64_t> sharded_lengths() {
  return {50, 0, 7, 301, 33, 64, 149};
}
/// Ways to share out tokens: one rank, contiguous, zigzag, and many small ranges.
inline std::vector<std::vector<Share>> share_layouts(int64_t tokens) {
  return {contiguous_shares(tokens, 1), contiguous_shares(tokens, 5), zigzag_shares(tokens, 3),
          dealt_shares(tokens, 3, 21)};
}

/// The keys that a rank holds: of every piece [p0, p1) those at positions [p0 - before, p1), and
/// the first `sinks` ones; or all keys of all segments.
struct KeyReach {
  int64_t before = 0;
  int64_t sinks = 0;
  bool whole = false;
  int64_t spare_rows = 0;  ///< of the key tensors, beyond the last run
};

/// The grid of one rank, with its memory. It has empty pieces between others, and both empty pieces
/// and empty runs at the end, as arrays of fixed capacity have.
class ShardedGrid {
 public:
  ShardedGrid(Stream& stream, const Segments& segments, const Share& share, KeyReach reach) {
    std::vector<int32_t> block_starts;
    for (int64_t s = 0; s <= segments.grid().segments(); ++s) {
      block_starts.push_back(static_cast<int32_t>(segments.first_block(s)));
    }
    for (int64_t s = 0; s < segments.grid().segments(); ++s) add_segment(segments, share, reach, s);
    for (int i = 0; i < 2; ++i) {
      pieces_.repeat_last();
      runs_.repeat_last();
    }
    key_tokens_.resize(key_tokens_.size() + static_cast<size_t>(reach.spare_rows), kNoToken);
    memory_.reserve(9);
    const BuildShardedGrid build{
        .positions = keep(Tensor(DType::kI32, {static_cast<int64_t>(query_tokens_.size())})),
        .tile_starts = keep(Tensor(DType::kI32, {static_cast<int64_t>(pieces_.starts.size())})),
        .starts = keep(from_ints(pieces_.starts)),
        .firsts = keep(from_ints(pieces_.firsts)),
        .piece_segments = keep(from_ints(pieces_.segments)),
        .run_starts = keep(from_ints(runs_.starts)),
        .run_firsts = keep(from_ints(runs_.firsts)),
        .run_segments = keep(from_ints(runs_.segments)),
        .block_starts = keep(from_ints(block_starts)),
        .block = segments.block(),
        .key_rows = static_cast<int64_t>(key_tokens_.size())};
    grid_ = build_sharded_grid(stream, build);
  }

  static constexpr int64_t kNoToken = -1;

  const SegmentGrid& grid() const { return grid_; }
  /// Token of every row of q, and of every row of k: kNoToken beyond the last run.
  const std::vector<int64_t>& query_tokens() const { return query_tokens_; }
  const std::vector<int64_t>& key_tokens() const { return key_tokens_; }

 private:
  struct Rows {
    std::vector<int32_t> starts{0};
    std::vector<int32_t> firsts;
    std::vector<int32_t> segments;

    void add(int64_t segment, int64_t first, int64_t end) {
      starts.push_back(starts.back() + static_cast<int32_t>(end - first));
      firsts.push_back(static_cast<int32_t>(first));
      segments.push_back(static_cast<int32_t>(segment));
    }
    void repeat_last() {
      starts.push_back(starts.back());
      firsts.push_back(firsts.empty() ? 0 : firsts.back());
      segments.push_back(segments.empty() ? 0 : segments.back());
    }
  };

  void add_segment(const Segments& segments, const Share& share, KeyReach reach, int64_t s) {
    const int64_t start = segments.start(s);
    const int64_t length = segments.length(s);
    std::vector<TokenRange> keys;
    if (reach.whole) keys.push_back({0, length});
    for (const TokenRange& range : share) {
      const int64_t first = std::clamp<int64_t>(range.begin - start, 0, length);
      const int64_t end = std::clamp<int64_t>(range.end - start, 0, length);
      pieces_.add(s, first, end);
      for (int64_t i = first; i < end; ++i) query_tokens_.push_back(start + i);
      if (first == end) continue;
      keys.push_back({std::max<int64_t>(0, first - reach.before), end});
      keys.push_back({0, std::min(reach.sinks, end)});
    }
    std::ranges::sort(keys, {}, &TokenRange::begin);
    int64_t done = 0;
    for (size_t i = 0; i < keys.size();) {
      TokenRange run = keys[i];
      for (++i; i < keys.size() && keys[i].begin <= run.end; ++i) {
        run.end = std::max(run.end, keys[i].end);
      }
      if (run.end <= std::max(done, run.begin)) continue;
      runs_.add(s, run.begin, run.end);
      for (int64_t j = run.begin; j < run.end; ++j) key_tokens_.push_back(start + j);
      done = run.end;
    }
  }

  TensorView keep(Tensor x) {
    memory_.push_back(std::move(x));
    return memory_.back().view();
  }

  Rows pieces_;
  Rows runs_;
  std::vector<int64_t> query_tokens_;
  std::vector<int64_t> key_tokens_;
  std::vector<Tensor> memory_;
  SegmentGrid grid_{};
};

namespace detail {

/// Calls visit(element of the whole, element of the part, place in `rows`) for a part that has
/// `rows` of an axis of the whole.
template <class Visit>
void for_each_element(const Shape& whole, int axis, const std::vector<int64_t>& rows,
                      Visit&& visit) {
  int64_t outer = 1;
  int64_t inner = 1;
  for (int i = 0; i < axis; ++i) outer *= whole[i];
  for (int i = axis + 1; i < whole.rank(); ++i) inner *= whole[i];
  for (int64_t o = 0; o < outer; ++o) {
    for (size_t r = 0; r < rows.size(); ++r) {
      const int64_t part = o * static_cast<int64_t>(rows.size()) + static_cast<int64_t>(r);
      for (int64_t i = 0; i < inner; ++i) {
        visit((o * whole[axis] + rows[r]) * inner + i, part * inner + i, r);
      }
    }
  }
}

}  // namespace detail

/// Rows of an axis; NaN, which nobody may read, where there is no token.
inline Tensor take_rows(const Tensor& x, int axis, const std::vector<int64_t>& rows) {
  const std::vector<double> from = to_doubles(x);
  const Shape shape = x.shape().with(axis, static_cast<int64_t>(rows.size()));
  std::vector<double> taken(static_cast<size_t>(shape.elements()),
                            std::numeric_limits<double>::quiet_NaN());
  detail::for_each_element(x.shape(), axis, rows, [&](int64_t at, int64_t to, size_t r) {
    if (rows[r] >= 0) taken[static_cast<size_t>(to)] = from[static_cast<size_t>(at)];
  });
  return from_doubles(x.dtype(), shape, taken);
}

/// A tensor that is put together from parts: adds the rows of a part at their place. Rows without a
/// token must hold `untouched`.
struct Sum {
  Shape shape;
  std::vector<double> values = std::vector<double>(static_cast<size_t>(shape.elements()));

  void add(const Tensor& part, int axis, const std::vector<int64_t>& rows, double untouched = 77) {
    const std::vector<double> from = to_doubles(part);
    ASSERT_EQ(part.shape(), shape.with(axis, static_cast<int64_t>(rows.size())));
    detail::for_each_element(shape, axis, rows, [&](int64_t to, int64_t at, size_t r) {
      const double x = from[static_cast<size_t>(at)];
      if (rows[r] >= 0) {
        values[static_cast<size_t>(to)] += x;
      } else {
        ASSERT_EQ(x, untouched) << "in a row beyond the last run";
      }
    });
  }
  void add(const Tensor& part) {
    const std::vector<double> from = to_doubles(part);
    ASSERT_EQ(from.size(), values.size());
    for (size_t i = 0; i < from.size(); ++i) values[i] += from[i];
  }
};

}  // namespace tessera::support
