#include "parallel/shard.h"

#include <gtest/gtest.h>

#include "tests/support/compare.h"

namespace tessera {
namespace {

TEST(Shard, EveryIndexHasOneOwner) {
  for (const int64_t extent : {int64_t{0}, int64_t{1}, int64_t{7}, int64_t{8}, int64_t{101}}) {
    for (const int parts : {1, 2, 3, 8}) {
      int64_t next = 0;
      for (int part = 0; part < parts; ++part) {
        const Shard shard = Shard::split({4, extent}, 1, part, parts);
        EXPECT_EQ(shard.begin, next);
        EXPECT_GE(shard.length, extent / parts);
        EXPECT_LE(shard.length, extent / parts + 1);
        EXPECT_EQ(shard.local(), (Shape{4, shard.length}));
        next += shard.length;
      }
      EXPECT_EQ(next, extent);
    }
  }
}

TEST(Shard, ReplicatedIsWhole) {
  const Shard shard = Shard::replicated({5, 3});
  EXPECT_EQ(shard.local(), (Shape{5, 3}));
  EXPECT_EQ(shard, Shard::split({5, 3}, 0, 0, 1));
}

TEST(Shard, RefusesWhatCannotBe) {
  support::expect_error([] { Shard::split({4}, 1, 0, 2); },
                        "shard: axis is 1, expected one of [4]");
  support::expect_error([] { Shard::split({4}, 0, 2, 2); }, "shard: part is 2, expected 0 to 1");
  support::expect_error([] { Shard::replicated({}); }, "shard: the global tensor has no axes");
}

}  // namespace
}  // namespace tessera
