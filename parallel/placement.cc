#include "parallel/placement.h"

namespace tessera {

const char* name_of(Placement placement) {
  static constexpr std::array<const char*, kPlacements> kNames{"replicated", "tensor", "expert"};
  return kNames[static_cast<size_t>(placement)];
}

PlacementRule rule_of(Placement placement) {
  static constexpr std::array<PlacementRule, kPlacements> kRules{{
      {.sharded = std::nullopt, .sums = kAllAxes},
      {.sharded = Axis::kTensor, .sums = kTensorReplicas},
      {.sharded = Axis::kExpert, .sums = kExpertReplicas},
  }};
  return kRules[static_cast<size_t>(placement)];
}

Communicator& group_of(const ProcessMesh& mesh, Placement placement) {
  return mesh.group(rule_of(placement).sums);
}

GroupPlaces places_in(const ProcessMesh& mesh) {
  GroupPlaces places;
  for (size_t p = 0; p < kPlacements; ++p) {
    const Communicator& group = group_of(mesh, static_cast<Placement>(p));
    places.by_placement[p] = {.rank = group.rank(), .size = group.size()};
  }
  return places;
}

}  // namespace tessera
