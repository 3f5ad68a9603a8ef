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

TEST(Shard, OverlapIsWhatBothHold) {
  const Shape whole{10, 6};
  // Indices that both shards contain, counted one by one.
  for (const int axis_a : {0, 1}) {
    for (const int axis_b : {0, 1}) {
      for (int a = 0; a < 4; ++a) {
        for (int b = 0; b < 3; ++b) {
          const Shard left = Shard::split(whole, axis_a, a, 4);
          const Shard right = Shard::split(whole, axis_b, b, 3);
          const auto contains = [](const Shard& s, int64_t row, int64_t column) {
            const int64_t at = s.axis == 0 ? row : column;
            return at >= s.begin && at < s.begin + s.length;
          };
          const std::optional<Box> box = overlap(left, right);
          int64_t both = 0;
          for (int64_t row = 0; row < 10; ++row) {
            for (int64_t column = 0; column < 6; ++column) {
              if (!contains(left, row, column) || !contains(right, row, column)) continue;
              ++both;
              ASSERT_TRUE(box.has_value());
              EXPECT_GE(row, box->begin[0]);
              EXPECT_LT(row, box->begin[0] + box->extents[0]);
              EXPECT_GE(column, box->begin[1]);
              EXPECT_LT(column, box->begin[1] + box->extents[1]);
            }
          }
          EXPECT_EQ(box.has_value() ? box->extents.elements() : 0, both);
        }
      }
    }
  }
}

TEST(Shard, RefusesWhatCannotBe) {
  support::expect_error([] { Shard::split({4}, 1, 0, 2); },
                        "shard: axis is 1, expected one of [4]");
  support::expect_error([] { Shard::split({4}, 0, 2, 2); }, "shard: part is 2, expected 0 to 1");
  support::expect_error([] { Shard::replicated({}); }, "shard: the global tensor has no axes");
  support::expect_error([] { overlap(Shard::replicated({4}), Shard::replicated({5})); },
                        "overlap: one shard is of a tensor [4], the other of [5]");
}

}  // namespace
}  // namespace tessera
