#include "parallel/token_runs.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace tessera {

namespace {

/// Appends positions [begin, end) of a segment, as far as they are not there yet.
void add_positions(std::span<const int32_t> starts, int32_t segment, int64_t begin, int64_t end,
                   int64_t& rows, NeededKeys& keys) {
  const bool same = !keys.runs.empty() && keys.runs.back().segment == segment;
  const int64_t last = same ? keys.runs.back().first + keys.runs.back().count : -1;
  begin = std::max(begin, std::max<int64_t>(last, 0));
  if (begin >= end) return;
  const int32_t count = static_cast<int32_t>(end - begin);
  if (begin == last) {
    keys.runs.back().count += count;
  } else {
    keys.runs.push_back({segment, static_cast<int32_t>(begin), static_cast<int32_t>(rows), count});
  }
  const int64_t origin = starts[static_cast<size_t>(segment)];
  append(keys.tokens, {origin + begin, origin + end});
  rows += end - begin;
}

}  // namespace

void query_pieces(std::span<const int32_t> starts, std::span<const TokenRange> queries,
                  std::vector<TokenRun>& pieces) {
  pieces.clear();
  int64_t row = 0;
  for (const TokenRange& range : queries) {
    CHECK(!starts.empty() && range.begin >= starts.front() && range.end <= starts.back(),
          "query_pieces: tokens [", range.begin, ", ", range.end, ") are not in the segments, [",
          starts.empty() ? 0 : starts.front(), ", ", starts.empty() ? 0 : starts.back(), ")");
    // The last segment that starts here or before: an empty one never is.
    auto segment = std::upper_bound(starts.begin(), starts.end(), range.begin) - 1;
    for (int64_t at = range.begin; at < range.end;) {
      while (*(segment + 1) <= at) ++segment;
      const int64_t end = std::min<int64_t>(range.end, *(segment + 1));
      pieces.push_back({static_cast<int32_t>(segment - starts.begin()),
                        static_cast<int32_t>(at - *segment), static_cast<int32_t>(row),
                        static_cast<int32_t>(end - at)});
      row += end - at;
      at = end;
    }
  }
}

void window_keys(std::span<const int32_t> starts, std::span<const TokenRun> pieces, int64_t window,
                 int64_t sinks, NeededKeys& keys) {
  CHECK(window >= 1 && sinks >= 0, "window_keys: window is ", window, " and sinks is ", sinks,
        ", expected at least 1 and 0");
  keys.tokens.clear();
  keys.runs.clear();
  int64_t rows = 0;
  for (size_t i = 0; i < pieces.size();) {
    const int32_t segment = pieces[i].segment;
    size_t end = i;
    while (end < pieces.size() && pieces[end].segment == segment) ++end;
    const int64_t reach = pieces[end - 1].first + pieces[end - 1].count;
    add_positions(starts, segment, 0, std::min(sinks, reach), rows, keys);
    for (; i < end; ++i) {
      const int64_t first = pieces[i].first;
      add_positions(starts, segment, first - window + 1, first + pieces[i].count, rows, keys);
    }
  }
}

void segment_keys(std::span<const int32_t> starts, std::span<const TokenRun> pieces,
                  NeededKeys& keys) {
  window_keys(starts, pieces, int64_t{1} << 32, 0, keys);
}

void block_keys(std::span<const int32_t> starts, std::span<const TokenRun> pieces, int64_t block,
                NeededKeys& keys) {
  window_keys(starts, pieces, block, 0, keys);
}

}  // namespace tessera
