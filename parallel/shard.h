#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/core/tensor_view.h"

namespace tessera {

/// The part of a global tensor that one rank holds: [begin, begin + length) of one axis, and all
/// of the others. With `blocks` above 1 the axis is several matrices one above the other, and the
/// rank holds that range of each, end to end.
struct Shard {
  Shape whole;         ///< shape of the global tensor
  int axis = 0;        ///< the split axis
  int64_t begin = 0;   ///< first index on `axis`, within each block
  int64_t length = 0;  ///< extent on `axis` of each block; whole[axis] when not split
  int64_t blocks = 1;  ///< equal parts of `axis`; above 1 only on the outermost axis

  /// The whole tensor, on every rank.
  static Shard replicated(Shape whole);
  /// Block `part` of `parts` along `axis`. The first whole[axis] % parts blocks are one longer
  /// than the rest, so that every index has exactly one owner.
  static Shard split(Shape whole, int axis, int part, int parts, int64_t blocks = 1);
  /// Indices [begin, begin + length) of `axis`.
  static Shard range(Shape whole, int axis, int64_t begin, int64_t length);

  /// The shape of the part.
  Shape local() const { return whole.with(axis, blocks * length); }
  /// Of each block on `axis`.
  int64_t block_extent() const { return whole[axis] / blocks; }

  friend bool operator==(const Shard&, const Shard&) = default;
};

/// Elements of a part that follow each other in the global tensor, too; row-major numbers.
struct ShardRun {
  int64_t local;  ///< of the first one, in the part
  int64_t whole;  ///< of the first one, in the global tensor
  int64_t count;
};

/// Calls visit(ShardRun) for all elements of a part, in order.
template <class Visit>
void for_each_run(const Shard& shard, Visit&& visit) {
  int64_t outer = 1;
  int64_t inner = 1;
  for (int axis = 0; axis < shard.whole.rank(); ++axis) {
    if (axis < shard.axis) outer *= shard.whole[axis];
    if (axis > shard.axis) inner *= shard.whole[axis];
  }
  const int64_t count = shard.length * inner;
  const int64_t distance = shard.block_extent() * inner;
  for (int64_t i = 0; i < outer * shard.blocks; ++i) {
    visit(ShardRun{i * count, i * distance + shard.begin * inner, count});
  }
}

/// A box of a global tensor: on each axis the indices [begin, begin + extents).
struct Box {
  std::array<int64_t, Shape::kMaxRank> begin{};
  Shape extents;

  friend bool operator==(const Box&, const Box&) = default;
};

/// All of a tensor.
Box whole_box(const Shape& shape);
/// What a rank holds of one block.
Box box_of(const Shard& shard, int64_t block = 0);

/// Elements [begin, end) of `block`, numbered row-major within it, as boxes of the tensor that
/// `block` is a part of: at most 2 * rank - 1, in the order of the elements, so that one box goes
/// on where the one before it has ended, and the elements of each are consecutive in the block.
std::vector<Box> boxes_of_range(const Box& block, int64_t begin, int64_t end);
/// The same for elements of a rank's part, of all its blocks.
std::vector<Box> boxes_of_range(const Shard& shard, int64_t begin, int64_t end);

}  // namespace tessera
