#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/tensor_view.h"

namespace tessera {

/// How evenly the tokens of a step fall on experts and on the ranks that have them.
struct ExpertLoad {
  double experts = 0;  ///< most / mean tokens of an expert in the worst layer; 0 without MoE
  int64_t layer = 0;   ///< that layer, counted over the MoE layers
  std::vector<int64_t> expert_tokens;              ///< of each expert there
  std::vector<std::vector<int64_t>> layer_tokens;  ///< of each expert in each MoE layer
  double ranks = 0;  ///< most / mean tokens of a rank of the expert axis in its worst layer
  std::vector<int64_t> rank_tokens;  ///< of each rank of the expert axis, summed over the layers
  int64_t dropped = 0;               ///< (token, expert) pairs beyond an expert's capacity
};

/// From `counts` [moe layers, experts], f32, in host memory: tokens that chose each expert, over
/// all ranks; empty without MoE.
ExpertLoad expert_load(ConstTensorView counts, int expert_ranks);

}  // namespace tessera
