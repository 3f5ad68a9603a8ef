#pragma once

#include <algorithm>
#include <cstdint>

namespace tessera {

/// Elements of one task of a CPU loop: long enough that handing it out costs nothing, short enough
/// that two threads finish together.
inline constexpr int64_t kGrain = 16384;

/// Rows of `row_elements` in one task: a function of the shape alone.
constexpr int64_t row_grain(int64_t row_elements) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, row_elements));
}

}  // namespace tessera
