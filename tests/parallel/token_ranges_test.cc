#include "parallel/token_ranges.h"

#include <gtest/gtest.h>

#include "tests/support/compare.h"

namespace tessera {
namespace {

TEST(TokenRanges, JoinWhereTheyTouch) {
  TokenRanges ranges;
  append(ranges, {2, 4});
  append(ranges, {4, 7});
  append(ranges, {7, 7});
  append(ranges, {9, 10});
  EXPECT_EQ(ranges, (TokenRanges{{2, 7}, {9, 10}}));
  EXPECT_EQ(rows_of(ranges), 6);
  EXPECT_EQ(rows_of({}), 0);
  support::expect_error(
      [&] {
        append(ranges, {9, 12});
      },
      "token_ranges: a range begins at 9, expected at least 10");
}

TEST(TokenRanges, SelectRows) {
  const TokenRanges ranges{{2, 7}, {9, 10}, {20, 30}};
  EXPECT_EQ(select_rows(ranges, 0, 16), ranges);
  EXPECT_EQ(select_rows(ranges, 4, 3), (TokenRanges{{6, 7}, {9, 10}, {20, 21}}));
  EXPECT_EQ(select_rows(ranges, 5, 0), TokenRanges{});
  EXPECT_EQ(select_rows(ranges, 15, 1), (TokenRanges{{29, 30}}));
  support::expect_error([&] { select_rows(ranges, 15, 2); },
                        "token_ranges: rows 15 to 17 are chosen of 16");
}

}  // namespace
}  // namespace tessera
