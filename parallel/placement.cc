#include "parallel/placement.h"

#include <algorithm>

namespace tessera {

const char* name_of(Placement placement) {
  static constexpr std::array<const char*, kPlacements> kNames{"replicated", "tensor", "expert"};
  return kNames[static_cast<size_t>(placement)];
}

const PlacementRule& rule_of(Placement placement) {
  static const std::array<PlacementRule, kPlacements> kRules{{
      {std::nullopt, {Axis::kData, Axis::kExpert, Axis::kSequence, Axis::kTensor}},
      {Axis::kTensor, {Axis::kData, Axis::kExpert, Axis::kSequence}},
      {Axis::kExpert, {Axis::kData, Axis::kSequence, Axis::kTensor}},
  }};
  return kRules[static_cast<size_t>(placement)];
}

std::unique_ptr<Communicator> group_over(const ProcessMesh& mesh, const std::vector<Axis>& axes) {
  const MeshShape& shape = mesh.shape();
  const std::array<int, kAxes> extents{shape.data, shape.expert, shape.sequence, shape.tensor};
  // The color of a rank is the rank with coordinate 0 on `axes` and its own on all others.
  std::vector<int> colors(static_cast<size_t>(shape.ranks()));
  for (int rank = 0; rank < shape.ranks(); ++rank) {
    int& color = colors[static_cast<size_t>(rank)];
    color = rank;
    int stride = shape.ranks();
    for (size_t axis = 0; axis < kAxes; ++axis) {
      stride /= extents[axis];
      if (std::find(axes.begin(), axes.end(), static_cast<Axis>(axis)) == axes.end()) continue;
      color -= rank / stride % extents[axis] * stride;
    }
  }
  return mesh.world().split(colors);
}

PlacementGroups::PlacementGroups(const ProcessMesh& mesh) : world_(mesh.world()) {
  for (size_t p = 0; p < kPlacements; ++p) {
    groups_[p] = group_over(mesh, rule_of(static_cast<Placement>(p)).sums);
  }
}

GroupPlaces PlacementGroups::places() const {
  GroupPlaces places;
  for (size_t p = 0; p < kPlacements; ++p) {
    places.by_placement[p] = {.rank = groups_[p]->rank(), .size = groups_[p]->size()};
  }
  return places;
}

}  // namespace tessera
