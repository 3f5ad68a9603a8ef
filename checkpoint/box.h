#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "kernels/core/tensor_view.h"
#include "parallel/shard.h"

namespace tessera {

/// Boxes here have 1 to Shape::kMaxRank axes and extents >= 1. Their elements are numbered
/// row-major, last axis fastest.
using BoxIndex = std::array<int64_t, Shape::kMaxRank>;

/// "[0:4, 8:16]".
std::string to_string(const Box& box);

/// What both hold; empty when they are apart. The ranks must agree.
std::optional<Box> intersect(const Box& a, const Box& b);

/// A stretch of elements that are consecutive in the numbering of two boxes.
struct Stretch {
  int64_t in_first = 0;   ///< number of the first element within the first box
  int64_t in_second = 0;  ///< number of the first element within the second box
  int64_t length = 0;     ///< elements
};

/// Calls `visit` for the elements of `overlap`, a box within both a and b, in maximal stretches
/// that are consecutive in a and in b, in increasing order of both.
void for_each_stretch(const Box& overlap, const Box& a, const Box& b,
                      const std::function<void(const Stretch&)>& visit);

/// Whether `parts`, each within `whole`, hold every element of it exactly once.
/// n log n in the number of parts: the mixed difference of an indicator function is a sum of
/// signed unit weights at its corners and determines the function, so the parts tile `whole`
/// exactly when the signed corners of all parts add up to those of `whole`.
bool covers_exactly(std::span<const Box> parts, const Box& whole);

}  // namespace tessera
