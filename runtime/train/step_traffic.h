#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/process_mesh.h"
#include "runtime/train/step_plan.h"

namespace tessera {

/// What one rank exchanges in one communicator in one optimizer step.
struct GroupTraffic {
  std::string group;  ///< "tensor", "sequence*tensor", ..., or "world"
  int ranks = 1;
  /// Each group lies within a block of so many ranks that follow each other in the world.
  int block = 1;
  Traffic traffic;
};

/// One optimizer step: all micro-batches, gradients, values and the short messages. Without
/// checkpoints and validation.
struct StepTraffic {
  int64_t step = 0;
  Stage stage = Stage::kDense;
  std::vector<GroupTraffic> groups;  ///< those with more than one rank

  int64_t sent() const;
  int64_t received() const;
};

/// What the log of `mesh` holds now, of each of its communicators of several ranks.
std::vector<GroupTraffic> traffic_of(const ProcessMesh& mesh);

/// A few lines for people: a table of what a rank sends, one column for each of `steps`, which have
/// the same groups.
std::string to_text(const std::vector<StepTraffic>& steps);

}  // namespace tessera
