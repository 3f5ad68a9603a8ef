#include "checkpoint/box.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "kernels/core/random.h"

namespace tessera {
namespace {

Box box(const BoxIndex& begin, const Shape& extents) {
  return {begin, extents};
}

// How often each element of `whole` is in one of the boxes.
std::vector<int> counts(const std::vector<Box>& parts, const Box& whole) {
  std::vector<int> count(static_cast<size_t>(whole.extents.elements()));
  for (const Box& part : parts) {
    for_each_stretch(part, part, whole, [&](const Stretch& stretch) {
      for (int64_t i = 0; i < stretch.length; ++i)
        ++count[static_cast<size_t>(stretch.in_second + i)];
    });
  }
  return count;
}

TEST(Box, OfAShardIsItsRowsOfTheAxis) {
  const Box mine = box_of(Shard::split({4, 10, 3}, 1, 2, 3));
  EXPECT_EQ(to_string(mine), "[0:4, 7:10, 0:3]");
  EXPECT_EQ(to_string(whole_box({2, 5})), "[0:2, 0:5]");
}

TEST(Box, IntersectionIsWhatBothHold) {
  const Box a = box({0, 2}, {4, 4});
  const std::optional<Box> both = intersect(a, box({3, 0}, {9, 3}));
  ASSERT_TRUE(both.has_value());
  EXPECT_EQ(to_string(*both), "[3:4, 2:3]");
  EXPECT_FALSE(intersect(a, box({4, 2}, {1, 1})).has_value());
  EXPECT_FALSE(intersect(a, box({0, 0}, {4, 2})).has_value());
}

// Against element by element, for random boxes of every rank.
TEST(Box, StretchesVisitEveryElementOfTheOverlapOnce) {
  uint64_t draw = 0;
  const auto below = [&](int64_t limit) {
    return static_cast<int64_t>(philox(3, 0, draw++)[0]) % limit;
  };
  const std::vector<Shape> shapes{{9}, {5, 6}, {3, 4, 5}, {2, 3, 4, 3}};
  for (int repetition = 0; repetition < 400; ++repetition) {
    const Shape shape = shapes[static_cast<size_t>(repetition % 4)];
    const auto random_box = [&] {
      Box some = whole_box(shape);
      for (int axis = 0; axis < shape.rank(); ++axis) {
        if (below(3) == 0) continue;
        const int64_t begin = below(shape[axis]);
        some.begin[static_cast<size_t>(axis)] = begin;
        some.extents = some.extents.with(axis, 1 + below(shape[axis] - begin));
      }
      return some;
    };
    const Box a = random_box();
    const Box b = random_box();
    const std::optional<Box> both = intersect(a, b);
    const std::vector<int> in_a = counts({a}, whole_box(shape));
    const std::vector<int> in_b = counts({b}, whole_box(shape));
    const std::vector<int> in_both =
        both ? counts({*both}, whole_box(shape)) : std::vector<int>(in_a.size());
    for (size_t i = 0; i < in_a.size(); ++i) EXPECT_EQ(in_both[i], in_a[i] * in_b[i]);
    if (!both) continue;
    // The elements of a, numbered by their place in the whole, must arrive at the same ones of b.
    std::vector<int64_t> place_in_a;
    std::vector<int64_t> place_in_b;
    for (const auto& [from, places] : {std::pair(a, &place_in_a), std::pair(b, &place_in_b)}) {
      for_each_stretch(from, from, whole_box(shape), [&, out = places](const Stretch& stretch) {
        for (int64_t i = 0; i < stretch.length; ++i) out->push_back(stretch.in_second + i);
      });
    }
    int64_t last = -1;
    for_each_stretch(*both, a, b, [&](const Stretch& stretch) {
      EXPECT_GT(stretch.in_first, last);
      last = stretch.in_first + stretch.length - 1;
      for (int64_t i = 0; i < stretch.length; ++i) {
        EXPECT_EQ(place_in_a.at(static_cast<size_t>(stretch.in_first + i)),
                  place_in_b.at(static_cast<size_t>(stretch.in_second + i)));
      }
    });
  }
}

TEST(Box, StretchesAreAsLongAsTheyCanBe) {
  int stretches = 0;
  for_each_stretch(whole_box({6, 7, 8}), whole_box({6, 7, 8}), whole_box({6, 7, 8}),
                   [&](const Stretch& stretch) {
                     ++stretches;
                     EXPECT_EQ(stretch.length, 6 * 7 * 8);
                   });
  EXPECT_EQ(stretches, 1);
}

TEST(Box, CoverFindsHolesAndOverlaps) {
  const Box whole = whole_box({4, 6});
  const Box left = box({0, 0}, {4, 2});
  const Box top = box({0, 2}, {1, 4});
  const Box rest = box({1, 2}, {3, 4});
  EXPECT_TRUE(covers_exactly(std::vector{left, rest, top}, whole));
  EXPECT_FALSE(covers_exactly(std::vector{left, rest}, whole));
  EXPECT_FALSE(covers_exactly(std::vector{left, rest, top, top}, whole));
  // As many elements as the whole, but a hole and an overlap.
  EXPECT_FALSE(covers_exactly(std::vector{left, rest, box({0, 1}, {1, 4})}, whole));
  EXPECT_FALSE(covers_exactly(std::vector<Box>{}, whole));
}

// Against counting, on random sets of boxes that are tilings, or were before one box was changed.
TEST(Box, CoverAgreesWithCounting) {
  uint64_t draw = 0;
  const auto below = [&](int64_t limit) {
    return static_cast<int64_t>(philox(4, 0, draw++)[0]) % limit;
  };
  int tilings = 0;
  for (int repetition = 0; repetition < 1000; ++repetition) {
    const Shape shape = repetition % 2 == 0 ? Shape{5, 4, 3} : Shape{4, 7};
    std::vector<Box> parts{whole_box(shape)};
    for (int cut = 0; cut < 6; ++cut) {
      const auto chosen = static_cast<size_t>(below(std::ssize(parts)));
      const int axis = static_cast<int>(below(shape.rank()));
      Box first = parts[chosen];
      if (first.extents[axis] < 2) continue;
      Box second = first;
      const int64_t length = 1 + below(first.extents[axis] - 1);
      first.extents = first.extents.with(axis, length);
      second.begin[static_cast<size_t>(axis)] += length;
      second.extents = second.extents.with(axis, second.extents[axis] - length);
      parts[chosen] = first;
      parts.push_back(second);
    }
    if (below(2) == 0) {
      Box& victim = parts[static_cast<size_t>(below(std::ssize(parts)))];
      const int axis = static_cast<int>(below(shape.rank()));
      if (below(2) == 0 && victim.begin[static_cast<size_t>(axis)] > 0) {
        --victim.begin[static_cast<size_t>(axis)];
      } else if (victim.extents[axis] > 1) {
        victim.extents = victim.extents.with(axis, victim.extents[axis] - 1);
      }
    }
    const std::vector<int> count = counts(parts, whole_box(shape));
    const bool tiles = std::all_of(count.begin(), count.end(), [](int n) { return n == 1; });
    EXPECT_EQ(covers_exactly(parts, whole_box(shape)), tiles);
    tilings += tiles ? 1 : 0;
  }
  EXPECT_GT(tilings, 300);
  EXPECT_LT(tilings, 900);
}

}  // namespace
}  // namespace tessera
