#include "parallel/token_ranges.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace tessera {

int64_t rows_of(std::span<const TokenRange> ranges) {
  int64_t rows = 0;
  for (const TokenRange& range : ranges) rows += range.end - range.begin;
  return rows;
}

void append(TokenRanges& ranges, TokenRange range) {
  if (range.begin >= range.end) return;
  if (ranges.empty() || ranges.back().end < range.begin) {
    ranges.push_back(range);
    return;
  }
  CHECK(ranges.back().end == range.begin, "token_ranges: a range begins at ", range.begin,
        ", expected at least ", ranges.back().end, ", the end of the one before");
  ranges.back().end = range.end;
}

TokenRanges select_rows(std::span<const TokenRange> ranges, int64_t first, int64_t count) {
  CHECK(first >= 0 && count >= 0 && first + count <= rows_of(ranges), "token_ranges: rows ", first,
        " to ", first + count, " are chosen of ", rows_of(ranges));
  TokenRanges chosen;
  int64_t row = 0;
  for (const TokenRange& range : ranges) {
    const int64_t begin = std::max(range.begin, range.begin + first - row);
    const int64_t end = std::min(range.end, range.begin + first + count - row);
    append(chosen, {begin, end});
    row += range.end - range.begin;
  }
  return chosen;
}

}  // namespace tessera
