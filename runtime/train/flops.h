#pragma once

#include "runtime/train/step_plan.h"

namespace tessera {

class TrainConfig;

/// Floating-point operations of one token's forward and backward, by this rule:
/// 6 for each parameter of a matrix that the token meets (of experts, those chosen; the embedding
/// look-up is none), and 12 for each query head, head dimension and key that the token attends to
/// under `plan`, averaged over the positions of a sequence without document boundaries.
/// Recomputation is not counted. `active_parameters` is Transformer::active_parameters().
double flops_per_token(const TrainConfig& config, const StepPlan& plan, int64_t active_parameters);

}  // namespace tessera
