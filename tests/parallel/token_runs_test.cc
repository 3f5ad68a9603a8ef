#include "parallel/token_runs.h"

#include <gtest/gtest.h>

#include <set>

#include "parallel/sequence_layout.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"

namespace tessera {
namespace {

// Segments of 5, 0, 7, 4 and 0 tokens.
const std::vector<int32_t> kStarts{0, 5, 5, 12, 16, 16};

std::vector<TokenRun> pieces_of(const TokenRanges& queries) {
  std::vector<TokenRun> pieces;
  query_pieces(kStarts, queries, pieces);
  return pieces;
}

TEST(QueryPieces, AreCutWhereSegmentsBegin) {
  EXPECT_EQ(pieces_of({{3, 8}, {10, 16}}),
            (std::vector<TokenRun>{{0, 3, 0, 2}, {2, 0, 2, 3}, {2, 5, 5, 2}, {3, 0, 7, 4}}));
  EXPECT_EQ(pieces_of({{5, 12}}), (std::vector<TokenRun>{{2, 0, 0, 7}}));
  EXPECT_EQ(pieces_of({}), std::vector<TokenRun>{});
  support::expect_error(
      [] {
        pieces_of({{10, 17}});
      },
      "query_pieces: tokens [10, 17) are not in the segments, [0, 16)");
}

TEST(WindowKeys, JoinSinksAndWindows) {
  NeededKeys keys;
  // Segment 2 has pieces [0, 1) and [5, 7): with a window of 3, positions 3 and 4 come before them.
  const std::vector<TokenRun> pieces = pieces_of({{5, 6}, {10, 12}, {15, 16}});
  window_keys(kStarts, pieces, 3, 0, keys);
  EXPECT_EQ(keys.tokens, (TokenRanges{{5, 6}, {8, 12}, {13, 16}}));
  EXPECT_EQ(keys.runs, (std::vector<TokenRun>{{2, 0, 0, 1}, {2, 3, 1, 4}, {3, 1, 5, 3}}));
  window_keys(kStarts, pieces, 3, 2, keys);
  EXPECT_EQ(keys.tokens, (TokenRanges{{5, 7}, {8, 16}}));
  EXPECT_EQ(keys.runs, (std::vector<TokenRun>{{2, 0, 0, 2}, {2, 3, 2, 4}, {3, 0, 6, 4}}));
  // No sinks after the last query.
  window_keys(kStarts, pieces_of({{5, 7}}), 1, 5, keys);
  EXPECT_EQ(keys.tokens, (TokenRanges{{5, 7}}));
  support::expect_error([&] { window_keys(kStarts, pieces, 0, 0, keys); },
                        "window_keys: window is 0");
}

TEST(SegmentKeys, GoUpToTheLastQuery) {
  NeededKeys keys;
  segment_keys(kStarts, pieces_of({{3, 4}, {6, 7}, {9, 10}}), keys);
  EXPECT_EQ(keys.tokens, (TokenRanges{{0, 4}, {5, 10}}));
  EXPECT_EQ(keys.runs, (std::vector<TokenRun>{{0, 0, 0, 4}, {2, 0, 4, 5}}));
  segment_keys(kStarts, {}, keys);
  EXPECT_EQ(keys.runs.size() + keys.tokens.size(), 0u);
}

TEST(BlockKeys, HaveTheBlocksThatEndHere) {
  NeededKeys keys;
  block_keys(kStarts, pieces_of({{8, 9}, {11, 12}}), 4, keys);
  EXPECT_EQ(keys.tokens, (TokenRanges{{5, 12}}));
  EXPECT_EQ(keys.runs, (std::vector<TokenRun>{{2, 0, 0, 7}}));
}

struct Rule {
  enum Kind { kWindow, kSegment, kBlock } kind;
  int64_t window = 1;
  int64_t sinks = 0;
};

/// By the definition: tokens of the same segment that some query of the rank needs.
std::set<int64_t> needed_tokens(const std::vector<int32_t>& starts, const TokenRanges& queries,
                                const Rule& rule) {
  std::set<int64_t> tokens;
  for (const TokenRange& range : queries) {
    for (int64_t token = range.begin; token < range.end; ++token) {
      int64_t origin = 0;
      for (const int32_t start : starts) origin = start <= token ? start : origin;
      for (int64_t key = origin; key <= token; ++key) {
        const bool seen =
            rule.kind == Rule::kSegment || token - key < rule.window || key - origin < rule.sinks;
        if (seen) tokens.insert(key);
      }
    }
  }
  return tokens;
}

void expect_needed(const std::vector<int32_t>& starts, const TokenRanges& queries,
                   const NeededKeys& keys, const Rule& rule) {
  std::set<int64_t> of_ranges;
  for (const TokenRange& range : keys.tokens) {
    for (int64_t token = range.begin; token < range.end; ++token) of_ranges.insert(token);
  }
  EXPECT_EQ(of_ranges, needed_tokens(starts, queries, rule));
  int64_t row = 0;
  std::vector<int64_t> of_runs;
  for (const TokenRun& run : keys.runs) {
    EXPECT_EQ(run.row, row);
    row += run.count;
    for (int32_t i = 0; i < run.count; ++i) {
      of_runs.push_back(starts[static_cast<size_t>(run.segment)] + run.first + i);
    }
  }
  EXPECT_EQ(of_runs, (std::vector<int64_t>(of_ranges.begin(), of_ranges.end())));
}

/// Documents that begin anywhere in sequences of `length` tokens, and some empty ones at the end.
std::vector<int32_t> documents(int64_t sequences, int64_t length, int documents, uint64_t seed) {
  std::set<int32_t> starts;
  for (int64_t s = 0; s <= sequences; ++s) starts.insert(static_cast<int32_t>(s * length));
  const support::Tensor more =
      support::random_ints({documents}, seed, 0, static_cast<int32_t>(sequences * length));
  starts.insert(more.as<int32_t>().begin(), more.as<int32_t>().end());
  std::vector<int32_t> all(starts.begin(), starts.end());
  all.resize(all.size() + 2, all.back());
  return all;
}

TEST(NeededKeys, AreThoseOfTheDefinitionAndWithinTheBounds) {
  for (const SequenceOrder order : {SequenceOrder::kContiguous, SequenceOrder::kZigzag}) {
    for (const int tensor_ranks : {1, 3}) {
      const SequenceLayout layout(order, 2, 48, 4, tensor_ranks);
      for (uint64_t seed = 0; seed < 40; ++seed) {
        const std::vector<int32_t> starts = documents(2, 48, static_cast<int>(seed % 10), seed);
        const int64_t segments = static_cast<int64_t>(starts.size()) - 3;
        for (int rank = 0; rank < 4 * tensor_ranks; ++rank) {
          const TokenRanges queries =
              layout.context_tokens(rank / tensor_ranks, rank % tensor_ranks);
          std::vector<TokenRun> pieces;
          query_pieces(starts, queries, pieces);
          const auto share = SequenceLayout::Share::kContextRank;
          EXPECT_LE(static_cast<int64_t>(pieces.size()), layout.max_pieces(share, segments));
          const auto check = [&](const NeededKeys& keys, const KeyBounds& bounds,
                                 const Rule& rule) {
            expect_needed(starts, queries, keys, rule);
            EXPECT_LE(rows_of(keys.tokens), bounds.rows);
            EXPECT_LE(static_cast<int64_t>(keys.runs.size()), bounds.runs);
          };
          NeededKeys keys;
          for (const int64_t window : {int64_t{1}, int64_t{7}, int64_t{30}}) {
            window_keys(starts, pieces, window, 3, keys);
            check(keys, layout.window_bounds(share, window, 3, segments),
                  {Rule::kWindow, window, 3});
          }
          segment_keys(starts, pieces, keys);
          check(keys, layout.segment_bounds(share, segments), {Rule::kSegment});
          block_keys(starts, pieces, 16, keys);
          check(keys, layout.block_bounds(share, 16, segments), {Rule::kBlock, 16, 0});
        }
      }
    }
  }
}

}  // namespace
}  // namespace tessera
