#include "checkpoint/layout.h"

#include <gtest/gtest.h>

namespace tessera {
namespace {

TEST(Layout, NamesSortAsTheStepsDo) {
  EXPECT_EQ(checkpoint_name(1000), "step-00001000");
  EXPECT_EQ(checkpoint_name(1000, 7), "step-00001000.e000007");
  EXPECT_EQ(checkpoint_name(1234567890), "step-1234567890");
  EXPECT_EQ(shard_name(7, 12, 0), "e000007-r00012-0.shard");
  EXPECT_EQ(part_name(7, 12), "e000007-r00012.pb");
}

TEST(Layout, ReadsItsOwnNames) {
  for (const int64_t step : {0L, 1L, 99'999'999L, 100'000'000L, 1234567890123L}) {
    EXPECT_EQ(step_of_name(checkpoint_name(step)), step);
    EXPECT_EQ(step_of_name(checkpoint_name(step, 3)), step);
  }
  EXPECT_EQ(epoch_of_name("e000042"), 42);
  EXPECT_EQ(epoch_of_name("e1234567"), 1234567);
}

TEST(Layout, TakesNoOtherNames) {
  for (const char* name :
       {"", "step-", "step-1", "step-0000001x", "step--0000001", "step-00000001.",
        "step-00000001.e1", "step-00000001.tmp", "step-00000001.e000000", "latest",
        "step-99999999999999999999", "step-000000001"}) {
    EXPECT_FALSE(step_of_name(name).has_value()) << name;
  }
  for (const char* name : {"", "e", "e1", "e00000x", "e000000", "f000001", "e000001.tmp"}) {
    EXPECT_FALSE(epoch_of_name(name).has_value()) << name;
  }
}

}  // namespace
}  // namespace tessera
