#pragma once

#include "parallel/process_mesh.h"

namespace tessera {

/// Where a rank stands on the axes that shard parameters. The default is a rank that holds all.
struct RankPlace {
  int tensor = 0;
  int tensor_ranks = 1;
  int expert = 0;
  int expert_ranks = 1;
};

inline RankPlace place_in(const ProcessMesh& mesh) {
  return {.tensor = mesh.coordinate(Axis::kTensor),
          .tensor_ranks = mesh.size(Axis::kTensor),
          .expert = mesh.coordinate(Axis::kExpert),
          .expert_ranks = mesh.size(Axis::kExpert)};
}

}  // namespace tessera
