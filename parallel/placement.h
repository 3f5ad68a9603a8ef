#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "parallel/process_mesh.h"

namespace tessera {

/// How the ranks of a mesh hold a parameter.
enum class Placement : uint8_t {
  kReplicated,  ///< whole on every rank
  kTensor,      ///< split over the tensor axis
  kExpert,      ///< a routed expert: split over the expert axis
};
inline constexpr int kPlacements = 3;

/// "replicated", "tensor" or "expert".
const char* name_of(Placement placement);

/// What follows from a placement.
///
/// `sums` are all axes but `sharded`: along each of them the ranks hold the same values and have
/// seen other tokens (or other parts of what the values do to them). The gradient of an element is
/// the SUM over these ranks, never a mean, and they share out its optimizer state among
/// themselves: the shards and these shares together give every element exactly one owner in the
/// world. So the gradient norm, which counts what each rank owns, counts each element once.
struct PlacementRule {
  std::optional<Axis> sharded;  ///< the axis that splits the parameter
  AxisSet sums;                 ///< the axes over which its gradient is summed
};
PlacementRule rule_of(Placement placement);

/// This rank's place among the ranks that hold the same shard of a parameter.
struct GroupPlace {
  int rank = 0;
  int size = 1;
};

/// One place for each placement; by default that of a rank that is alone.
struct GroupPlaces {
  std::array<GroupPlace, kPlacements> by_placement;

  const GroupPlace& of(Placement placement) const {
    return by_placement[static_cast<size_t>(placement)];
  }
};

/// The ranks over which gradients of `placement` are summed, ordered by their rank in the world.
Communicator& group_of(const ProcessMesh& mesh, Placement placement);
/// This rank's places in these groups.
GroupPlaces places_in(const ProcessMesh& mesh);

}  // namespace tessera
