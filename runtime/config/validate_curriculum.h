#pragma once

#include <vector>

#include "runtime/config/problems.h"

namespace tessera {

class TrainConfig;

/// What is wrong with the lengths and the first stage of sparsity, the points and sources of the
/// curriculum, and the hooks of a resolved configuration whose single numbers are in range.
std::vector<FieldProblem> validate_stages(const TrainConfig& config);
std::vector<FieldProblem> validate_curriculum(const TrainConfig& config);
std::vector<FieldProblem> validate_hooks(const TrainConfig& config);

}  // namespace tessera
