#pragma once

#include <string>
#include <vector>

namespace tessera {

class TrainConfig;

struct FieldProblem {
  std::string field;  ///< full name: "model.kv_heads"
  std::string what;   ///< `is 3, expected ...`: the rest of the sentence, with the way out
};

/// Everything that is wrong with a resolved configuration, whatever the number of ranks: the range
/// of each field, then what fields say together. Empty: nothing.
std::vector<FieldProblem> validate(const TrainConfig& config);

/// What is wrong with a resolved configuration whose mesh is complete (no axis 0): what each axis
/// must divide, with the nearest values that do, and how long it may be. The product of the axes is
/// checked by mesh_shape (parallel/process_mesh.h).
std::vector<FieldProblem> validate_mesh(const TrainConfig& config);

}  // namespace tessera
