#include "parallel/subgroup.h"

#include <gtest/gtest.h>

#include "tests/support/compare.h"

namespace tessera {
namespace {

TEST(Subgroup, KeepsTheOrderOfTheRanks) {
  const std::vector<int> colors{7, 0, 7, 7, 0};
  EXPECT_EQ(Subgroup(colors, 3).members, (std::vector<int>{0, 2, 3}));
  EXPECT_EQ(Subgroup(colors, 3).rank, 2);
  EXPECT_EQ(Subgroup(colors, 0).rank, 0);
  EXPECT_EQ(Subgroup(colors, 4).members, (std::vector<int>{1, 4}));
  EXPECT_EQ(Subgroup(colors, 4).rank, 1);
  support::expect_error([&] { Subgroup(colors, 5); }, "subgroup: rank is 5, expected 0 to 4");
}

}  // namespace
}  // namespace tessera
