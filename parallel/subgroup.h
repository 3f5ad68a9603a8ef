#pragma once

#include <span>
#include <vector>

namespace tessera {

/// The ranks that have the color of one of them, in the order of their ranks.
struct Subgroup {
  /// `colors` has one entry for each rank; `own` is the rank whose group this is.
  Subgroup(std::span<const int> colors, int own);

  std::vector<int> members;  ///< their ranks in the group that is split
  int rank = 0;              ///< place of `own` among the members
};

}  // namespace tessera
