#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/core/tensor_view.h"

namespace tessera {

/// The block of a global tensor that one rank holds: [begin, begin + length) of one axis, and all
/// of the others.
struct Shard {
  Shape whole;         ///< shape of the global tensor
  int axis = 0;        ///< the split axis
  int64_t begin = 0;   ///< first index on `axis`
  int64_t length = 0;  ///< extent on `axis`; whole[axis] when not split

  /// The whole tensor, on every rank.
  static Shard replicated(Shape whole);
  /// Block `part` of `parts` along `axis`. The first whole[axis] % parts blocks are one longer
  /// than the rest, so that every index has exactly one owner.
  static Shard split(Shape whole, int axis, int part, int parts);

  /// The shape of the block.
  Shape local() const { return whole.with(axis, length); }

  friend bool operator==(const Shard&, const Shard&) = default;
};

/// A box of a global tensor: on each axis the indices [begin, begin + extents).
struct Box {
  std::array<int64_t, Shape::kMaxRank> begin{};
  Shape extents;

  friend bool operator==(const Box&, const Box&) = default;
};

/// All of a tensor.
Box whole_box(const Shape& shape);
/// What a rank holds.
Box box_of(const Shard& shard);

/// Elements [begin, end) of `block`, numbered row-major within it, as boxes of the tensor that
/// `block` is a part of: at most 2 * rank - 1, in the order of the elements, so that one box goes
/// on where the one before it has ended, and the elements of each are consecutive in the block.
std::vector<Box> boxes_of_range(const Box& block, int64_t begin, int64_t end);

}  // namespace tessera
