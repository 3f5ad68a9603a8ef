#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/token_ranges.h"

namespace tessera {

// Which keys a rank needs for the queries that it holds. Segments (documents, or whole sequences)
// lie end to end: segment s is tokens [starts[s], starts[s + 1]), some may be empty. A position is
// the distance of a token from the start of its segment.
// Results are written to vectors of the caller, which grow to the largest and stay.

/// Consecutive tokens of one segment, in consecutive rows of a tensor. Four i32, so that an array
/// of them is an i32 tensor [runs, 4].
struct TokenRun {
  int32_t segment;
  int32_t first;  ///< position of the first token
  int32_t row;    ///< its row
  int32_t count;

  friend bool operator==(const TokenRun&, const TokenRun&) = default;
};

/// The keys for some queries. Row by row: the tokens of `runs` are those of `tokens`, in order.
struct NeededKeys {
  TokenRanges tokens;
  std::vector<TokenRun> runs;  ///< disjoint, ascending in segment and position
};

/// pieces = the tokens of `queries`, in order, cut where segments begin.
void query_pieces(std::span<const int32_t> starts, std::span<const TokenRange> queries,
                  std::vector<TokenRun>& pieces);

/// Keys that local groups need: in each segment the union over its pieces, positions [p0, p1), of
/// the window [p0 - window + 1, p1), and of the sinks [0, sinks) as far as the last piece goes.
/// `pieces` are those of query_pieces; window is at least 1.
void window_keys(std::span<const int32_t> starts, std::span<const TokenRun> pieces, int64_t window,
                 int64_t sinks, NeededKeys& keys);

/// Keys that global groups need: each segment that has a piece, up to the end of its last piece.
void segment_keys(std::span<const int32_t> starts, std::span<const TokenRun> pieces,
                  NeededKeys& keys);

/// Keys that pooling needs for every block of `block` tokens whose last token is in a piece:
/// [p0 - block + 1, p1) of each piece.
void block_keys(std::span<const int32_t> starts, std::span<const TokenRun> pieces, int64_t block,
                NeededKeys& keys);

}  // namespace tessera
