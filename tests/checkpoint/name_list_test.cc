#include "checkpoint/name_list.h"

#include <gtest/gtest.h>

namespace tessera {
namespace {

TEST(NameList, ShowsThreeAndCountsTheRest) {
  EXPECT_EQ(first_few({}), "");
  EXPECT_EQ(first_few({"a"}), "a");
  EXPECT_EQ(first_few({"a", "b", "c"}), "a, b, c");
  EXPECT_EQ(first_few({"a", "b", "c", "d", "e"}), "a, b, c and 2 more");
}

TEST(NameList, NamesOfStrangersFitInALine) {
  EXPECT_EQ(shown_name("a\n\x1B[31m\xC3\xA9"), "a??[31m??");
  EXPECT_EQ(shown_name(std::string(80, 'x')), std::string(80, 'x'));
  EXPECT_EQ(shown_name(std::string(81, 'x')), std::string(77, 'x') + "...");
}

}  // namespace
}  // namespace tessera
