#include "parallel/sequence_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "parallel/row_exchange.h"
#include "parallel/token_runs.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

TEST(SequenceLayout, HoldsStretchesOfEverySequence) {
  const SequenceLayout contiguous(SequenceOrder::kContiguous, 2, 16, 4, 2);
  EXPECT_EQ(contiguous.sequence_rows(), 8);
  EXPECT_EQ(contiguous.context_rows(), 4);
  EXPECT_EQ(contiguous.sequence_tokens(1), (TokenRanges{{4, 8}, {20, 24}}));
  EXPECT_EQ(contiguous.context_tokens(1, 1), (TokenRanges{{20, 24}}));
  const SequenceLayout zigzag(SequenceOrder::kZigzag, 2, 16, 4, 2);
  EXPECT_EQ(zigzag.sequence_tokens(1), (TokenRanges{{2, 4}, {12, 14}, {18, 20}, {28, 30}}));
  EXPECT_EQ(zigzag.sequence_tokens(3), (TokenRanges{{6, 10}, {22, 26}}));
  EXPECT_EQ(zigzag.context_tokens(1, 0), (TokenRanges{{2, 4}, {12, 14}}));
  const SequenceLayout alone(SequenceOrder::kZigzag, 3, 6, 1, 4 - 2);
  EXPECT_EQ(alone.sequence_tokens(0), (TokenRanges{{0, 18}}));
  EXPECT_EQ(alone.context_tokens(0, 1), (TokenRanges{{9, 18}}));
  support::expect_error([&] { zigzag.sequence_tokens(4); },
                        "sequence_layout: sequence rank is 4, expected 0 to 3");
  support::expect_error([&] { zigzag.context_tokens(0, 2); },
                        "sequence_layout: tensor rank is 2, expected 0 to 1");
}

TEST(SequenceLayout, EveryTokenHasOneOwner) {
  for (const SequenceOrder order : {SequenceOrder::kContiguous, SequenceOrder::kZigzag}) {
    for (const int sequence_ranks : {1, 2, 3}) {
      for (const int tensor_ranks : {1, 2, 4}) {
        const SequenceLayout layout(order, 3, 48, sequence_ranks, tensor_ranks);
        std::vector<int> owners(3 * 48, 0);
        for (int s = 0; s < sequence_ranks; ++s) {
          for (int t = 0; t < tensor_ranks; ++t) {
            const TokenRanges tokens = layout.context_tokens(s, t);
            EXPECT_EQ(rows_of(tokens), layout.context_rows());
            for (const TokenRange& range : tokens) {
              for (int64_t i = range.begin; i < range.end; ++i) ++owners[static_cast<size_t>(i)];
            }
          }
        }
        EXPECT_EQ(owners, std::vector<int>(3 * 48, 1));
      }
    }
  }
}

TEST(SequenceLayout, SaysWhichLengthsFit) {
  const auto expect = [](const std::string& sentence, SequenceOrder order, int64_t sequences,
                         int64_t length, int sequence_ranks, int tensor_ranks) {
    support::expect_error(
        [&] { SequenceLayout(order, sequences, length, sequence_ranks, tensor_ranks); }, sentence);
  };
  expect(
      "sequence_layout: 1 sequences of 100 tokens cannot be cut evenly, 8 parts of each "
      "sequence and 1 parts of each sequence rank's tokens; the nearest lengths that fit are 96 "
      "and 104",
      SequenceOrder::kZigzag, 1, 100, 4, 1);
  expect("the nearest lengths that fit are 96 and 120", SequenceOrder::kContiguous, 1, 100, 4, 6);
  expect("the nearest length that fits is 8", SequenceOrder::kContiguous, 1, 3, 8, 1);
  expect("0 sequences of 4 tokens", SequenceOrder::kContiguous, 0, 4, 1, 1);
  SequenceLayout(SequenceOrder::kContiguous, 3, 100, 4, 3);
}

// Rows that come back: the bound holds, and a window that is not cut by documents reaches it.
TEST(SequenceLayout, BoundsReturnedRows) {
  for (const SequenceOrder order : {SequenceOrder::kContiguous, SequenceOrder::kZigzag}) {
    const SequenceLayout layout(order, 2, 48, 4, 3);
    const auto share = SequenceLayout::Share::kContextRank;
    const std::vector<std::vector<int32_t>> all_starts{
        {0, 48, 96}, {0, 13, 40, 48, 70, 96}, {0, 1, 2, 3, 47, 48, 90, 95, 96}};
    for (const std::vector<int32_t>& starts : all_starts) {
      for (const int64_t window : {int64_t{1}, int64_t{9}, int64_t{40}, int64_t{1000}}) {
        std::vector<TokenRanges> owned;
        std::vector<TokenRanges> windows;
        std::vector<TokenRanges> segments;
        for (int rank = 0; rank < 12; ++rank) {
          owned.push_back(layout.context_tokens(rank / 3, rank % 3));
          std::vector<TokenRun> pieces;
          NeededKeys keys;
          query_pieces(starts, owned.back(), pieces);
          window_keys(starts, pieces, window, 2, keys);
          windows.push_back(keys.tokens);
          segment_keys(starts, pieces, keys);
          segments.push_back(keys.tokens);
        }
        const int64_t most = static_cast<int64_t>(starts.size()) - 1;
        int64_t of_windows = 0;
        int64_t of_segments = 0;
        for (int rank = 0; rank < 12; ++rank) {
          RowExchange exchange;
          exchange.plan(rank, owned, windows);
          of_windows = std::max(of_windows, exchange.rows_returned());
          exchange.plan(rank, owned, segments);
          of_segments = std::max(of_segments, exchange.rows_returned());
        }
        EXPECT_LE(of_windows, layout.window_bounds(share, window, 2, most).returned) << window;
        EXPECT_LE(of_segments, layout.segment_bounds(share, most).returned);
        if (starts.size() == 3) {
          EXPECT_EQ(of_segments, layout.segment_bounds(share, most).returned);
        }
      }
    }
  }
}

TEST(SequenceLayout, BoundsAreTightForWholeSequences) {
  const SequenceLayout layout(SequenceOrder::kContiguous, 2, 64, 4, 1);
  const auto share = SequenceLayout::Share::kSequenceRank;
  EXPECT_EQ(layout.max_pieces(share, 2), 2);
  EXPECT_EQ(layout.max_pieces(share, 5), 5);
  const KeyBounds window = layout.window_bounds(share, 8, 4, 2);
  EXPECT_EQ(window.rows, 2 * (16 + 7 + 4));
  EXPECT_EQ(window.runs, 4);
  EXPECT_EQ(window.returned, 2 * (7 + 3 * 4));
  EXPECT_EQ(layout.segment_bounds(share, 2).rows, 128);
  EXPECT_EQ(layout.block_bounds(share, 16, 2).rows, 2 * (16 + 15));
}

}  // namespace
}  // namespace tessera
