#pragma once

#include <vector>

#include "parallel/process_mesh.h"

namespace tessera::support {

/// Every mesh of `ranks` ranks.
inline std::vector<MeshShape> meshes_of(int ranks) {
  std::vector<MeshShape> found;
  for (int d = 1; d <= ranks; ++d) {
    for (int e = 1; e <= ranks; ++e) {
      for (int s = 1; s <= ranks; ++s) {
        for (int t = 1; t <= ranks; ++t) {
          if (d * e * s * t == ranks) found.push_back({d, e, s, t});
        }
      }
    }
  }
  return found;
}

}  // namespace tessera::support
