#include "parallel/shard.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

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

// Every range of a block within a tensor, against the definition.
TEST(Shard, BoxesOfARangeAreItsElementsInOrder) {
  const Shape whole{3, 4, 2, 5};
  const Box block{.begin = {0, 1, 0, 2}, .extents = {3, 3, 2, 3}};
  std::vector<int64_t> numbers;  // of the block's elements, in the whole tensor
  for (int64_t a = 0; a < 3; ++a) {
    for (int64_t b = 1; b < 4; ++b) {
      for (int64_t c = 0; c < 2; ++c) {
        for (int64_t d = 2; d < 5; ++d) numbers.push_back(((a * 4 + b) * 2 + c) * 5 + d);
      }
    }
  }
  size_t most = 0;
  for (int64_t begin = 0; begin <= 54; ++begin) {
    for (int64_t end = begin; end <= 54; ++end) {
      std::vector<int64_t> found;
      const std::vector<Box> boxes = boxes_of_range(block, begin, end);
      most = std::max(most, boxes.size());
      for (const Box& box : boxes) {
        for (int64_t i = 0; i < box.extents.elements(); ++i) {
          int64_t number = 0;
          int64_t rest = i;
          int64_t stride = 1;
          for (int axis = 3; axis >= 0; --axis) {
            number += (box.begin[static_cast<size_t>(axis)] + rest % box.extents[axis]) * stride;
            rest /= box.extents[axis];
            stride *= whole[axis];
          }
          found.push_back(number);
        }
      }
      EXPECT_EQ(found, std::vector<int64_t>(numbers.begin() + begin, numbers.begin() + end))
          << begin << " to " << end;
    }
  }
  EXPECT_EQ(most, 7u) << "2 * rank - 1";
}

TEST(Shard, BoxesOfARangeAreFew) {
  const Box block = box_of(Shard::split({6, 10}, 0, 1, 2));
  EXPECT_EQ(boxes_of_range(block, 0, 30), std::vector<Box>{block});
  EXPECT_EQ(boxes_of_range(block, 10, 30), (std::vector<Box>{{{4, 0}, {2, 10}}}));
  EXPECT_EQ(boxes_of_range(block, 3, 7), (std::vector<Box>{{{3, 3}, {1, 4}}}));
  EXPECT_EQ(boxes_of_range(block, 3, 13), (std::vector<Box>{{{3, 3}, {1, 7}}, {{4, 0}, {1, 3}}}));
  EXPECT_TRUE(boxes_of_range(block, 5, 5).empty());
  EXPECT_EQ(boxes_of_range(whole_box({9}), 2, 5), (std::vector<Box>{{{2}, {3}}}));
  support::expect_error([&] { boxes_of_range(block, 0, 31); },
                        "boxes_of_range: [0, 31) is not within the 30 elements");
}

TEST(Shard, RefusesWhatCannotBe) {
  support::expect_error([] { Shard::split({4}, 1, 0, 2); },
                        "shard: axis is 1, expected one of [4]");
  support::expect_error([] { Shard::split({4}, 0, 2, 2); }, "shard: part is 2, expected 0 to 1");
  support::expect_error([] { Shard::replicated({}); }, "shard: the global tensor has no axes");
}

TEST(Shard, SplitsEachBlockOfAnAxis) {
  const Shard shard = Shard::split({12, 5}, 0, 1, 3, 2);  // rows 2, 3 and 8, 9
  EXPECT_EQ(shard.local(), (Shape{4, 5}));
  EXPECT_EQ(shard.block_extent(), 6);
  EXPECT_EQ(box_of(shard, 0), (Box{{2, 0}, {2, 5}}));
  EXPECT_EQ(box_of(shard, 1), (Box{{8, 0}, {2, 5}}));
  EXPECT_EQ(boxes_of_range(shard, 0, 20), (std::vector<Box>{{{2, 0}, {2, 5}}, {{8, 0}, {2, 5}}}));
  EXPECT_EQ(boxes_of_range(shard, 7, 13), (std::vector<Box>{{{3, 2}, {1, 3}}, {{8, 0}, {1, 3}}}));
  support::expect_error(
      [] {
        Shard::split({12, 6}, 1, 0, 3, 2);
      },
      "shard: 2 blocks of axis 1 of [12, 6], expected a divisor of the "
      "outermost extent");
}

TEST(Shard, RunsAreTheElementsInBothOrders) {
  for (const Shard& shard : {Shard::split({4, 6, 3}, 1, 1, 4), Shard::split({12, 2}, 0, 2, 3, 2),
                             Shard::range({7}, 0, 2, 3), Shard::replicated({2, 2})}) {
    int64_t next = 0;
    for_each_run(shard, [&](const ShardRun& run) {
      EXPECT_EQ(run.local, next);
      next += run.count;
      int64_t inner = 1;
      for (int axis = shard.axis + 1; axis < shard.whole.rank(); ++axis) inner *= shard.whole[axis];
      const int64_t index = run.whole / inner % shard.block_extent();
      EXPECT_EQ(index, shard.begin);
      EXPECT_EQ(run.count, shard.length * inner);
    });
    EXPECT_EQ(next, shard.local().elements());
  }
}

}  // namespace
}  // namespace tessera
