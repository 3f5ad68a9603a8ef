#pragma once

#include <vector>

#include "runtime/config/problems.h"

namespace tessera {

class TrainConfig;

/// Everything that is wrong with a resolved configuration, whatever the number of ranks: the range
/// of each field, then what fields say together. Empty: nothing.
std::vector<FieldProblem> validate(const TrainConfig& config);

/// What is wrong with a resolved configuration whose mesh is complete (no axis 0): what each axis
/// must divide, with the nearest values that do, and how long it may be. The product of the axes is
/// checked by mesh_shape (parallel/process_mesh.h).
std::vector<FieldProblem> validate_mesh(const TrainConfig& config);

}  // namespace tessera
