#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tessera {

/// Tokens [begin, end) of a micro-batch, numbered over all its sequences.
struct TokenRange {
  int64_t begin;
  int64_t end;

  friend bool operator==(const TokenRange&, const TokenRange&) = default;
};

/// Ascending, disjoint, none of them empty. Their tokens are the rows of a tensor, in this order.
using TokenRanges = std::vector<TokenRange>;

/// How many tokens there are.
int64_t rows_of(std::span<const TokenRange> ranges);

/// Appends a range that begins at or after the end of the last one; joins it with the last one
/// where they touch. An empty range is left out.
void append(TokenRanges& ranges, TokenRange range);

/// The tokens of rows [first, first + count) of `ranges`.
TokenRanges select_rows(std::span<const TokenRange> ranges, int64_t first, int64_t count);

}  // namespace tessera
