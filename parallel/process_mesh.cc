#include "parallel/process_mesh.h"

#include <cmath>
#include <limits>
#include <vector>

#include "parallel/mesh.pb.h"

namespace tessera {

namespace {

using Extents = std::array<int, kAxes>;

Extents extents_of(const MeshShape& shape) {
  return {shape.data, shape.expert, shape.sequence, shape.tensor};
}

// Changing the number of replicas changes least of how the model is cut; the tensor axis most.
constexpr std::array<double, kAxes> kReluctance{1.0, 1.01, 1.02, 1.03};

double distance(const MeshShape& from, const MeshShape& to) {
  double sum = 0;
  for (size_t axis = 0; axis < kAxes; ++axis) {
    const double wanted = std::max(1, extents_of(from)[axis]);
    sum += kReluctance[axis] * std::abs(std::log2(extents_of(to)[axis] / wanted));
  }
  return sum;
}

MeshShape nearest(const MeshShape& wanted, int ranks) {
  MeshShape best;
  double least = std::numeric_limits<double>::infinity();
  for (int expert = 1; expert <= ranks; ++expert) {
    if (ranks % expert != 0) continue;
    for (int sequence = 1; sequence <= ranks / expert; ++sequence) {
      if (ranks / expert % sequence != 0) continue;
      for (int tensor = 1; tensor <= ranks / expert / sequence; ++tensor) {
        if (ranks / expert / sequence % tensor != 0) continue;
        const MeshShape shape{ranks / expert / sequence / tensor, expert, sequence, tensor};
        if (distance(wanted, shape) >= least) continue;
        least = distance(wanted, shape);
        best = shape;
      }
    }
  }
  return best;
}

int64_t product(const MeshShape& shape) {
  int64_t product = 1;
  for (const int extent : extents_of(shape)) product *= extent;
  return product;
}

void check_fits(const MeshShape& shape, int ranks) {
  for (size_t axis = 0; axis < kAxes; ++axis) {
    const int extent = extents_of(shape)[axis];
    // Bounded by the number of ranks, the product of four cannot overflow unnoticed.
    if (extent >= 1 && extent <= ranks) continue;
    throw Error(ExitCode::kUsage, concat("mesh: ", name_of(static_cast<Axis>(axis)), " is ", extent,
                                         ", expected 1 to the ", ranks, " ranks of the job"));
  }
  if (product(shape) == ranks) return;
  throw Error(ExitCode::kUsage,
              concat("mesh: ", to_string(shape), " needs ", product(shape), " ranks, the job has ",
                     ranks, "; the nearest mesh that fits is ", to_string(nearest(shape, ranks)),
                     ", or start ", product(shape), " ranks"));
}

/// For each rank of the world, the rank of its group for `axes` with the lowest number: the one
/// with coordinate 0 on these axes and its own on all others.
std::vector<int> group_colors(const MeshShape& shape, AxisSet axes) {
  std::vector<int> colors;
  for (int rank = 0; rank < shape.ranks(); ++rank) {
    int color = rank;
    int stride = shape.ranks();
    for (size_t axis = 0; axis < kAxes; ++axis) {
      const int extent = extents_of(shape)[axis];
      stride /= extent;
      if (axes.contains(static_cast<Axis>(axis))) color -= rank / stride % extent * stride;
    }
    colors.push_back(color);
  }
  return colors;
}

constexpr std::array<AxisSet, 4> kGroups{kContext, kBatch, kTensorReplicas, kExpertReplicas};
/// Whose communicator a group may share: the first that has the same ranks and exists.
constexpr std::array<AxisSet, 9> kShared{AxisSet{Axis::kData},
                                         AxisSet{Axis::kExpert},
                                         AxisSet{Axis::kSequence},
                                         AxisSet{Axis::kTensor},
                                         kContext,
                                         kBatch,
                                         kTensorReplicas,
                                         kExpertReplicas,
                                         kAllAxes};

/// The axes of the set that have more than one rank.
AxisSet without_ones(const MeshShape& shape, AxisSet axes) {
  for (size_t axis = 0; axis < kAxes; ++axis) {
    if (extents_of(shape)[axis] == 1) axes = axes.without(static_cast<Axis>(axis));
  }
  return axes;
}

}  // namespace

std::string AxisSet::name() const {
  if (*this == kAllAxes) return "world";
  std::string name;
  for (int axis = 0; axis < kAxes; ++axis) {
    if (!contains(static_cast<Axis>(axis))) continue;
    if (!name.empty()) name += "*";
    name += name_of(static_cast<Axis>(axis));
  }
  return name;
}

const char* name_of(Axis axis) {
  static constexpr std::array<const char*, kAxes> kNames{"data", "expert", "sequence", "tensor"};
  return kNames[static_cast<size_t>(axis)];
}

std::string to_string(const MeshShape& shape) {
  std::string text;
  for (size_t axis = 0; axis < kAxes; ++axis) {
    if (axis > 0) text += " x ";
    text += concat(name_of(static_cast<Axis>(axis)), " ", extents_of(shape)[axis]);
  }
  return text;
}

MeshShape mesh_shape(const MeshConfig& config, int ranks) {
  const auto or_one = [](int extent) { return extent == 0 ? 1 : extent; };
  MeshShape shape{1, or_one(config.expert()), or_one(config.sequence()), or_one(config.tensor())};
  if (config.data() != 0) {
    shape.data = config.data();
  } else if (const int64_t cut = product(shape); cut > 0 && cut <= ranks) {
    // Rounded down when it does not divide, which check_fits then reports.
    shape.data = static_cast<int>(ranks / cut);
  }
  check_fits(shape, ranks);
  return shape;
}

ProcessMesh::ProcessMesh(Communicator& world, const MeshShape& shape)
    : world_(world), shape_(shape) {
  check_fits(shape, world.size());
  const auto make = [&](AxisSet axes) {
    owned_.push_back(world.split(group_colors(shape, axes), axes.name()));
    return owned_.back().get();
  };
  groups_[kAllAxes.bits()] = &world;
  for (size_t axis = 0; axis < kAxes; ++axis) {
    const AxisSet alone{static_cast<Axis>(axis)};
    along_[axis] = groups_[alone.bits()] = make(alone);
  }
  for (const AxisSet axes : kGroups) {
    Communicator* same = nullptr;
    for (const AxisSet other : kShared) {
      if (same != nullptr || without_ones(shape, other) != without_ones(shape, axes)) continue;
      same = groups_[other.bits()];
    }
    groups_[axes.bits()] = same != nullptr ? same : make(axes);
  }
}

Communicator& ProcessMesh::group(AxisSet axes) const {
  Communicator* found = groups_[axes.bits()];
  CHECK(found != nullptr, "mesh: there is no group for the axes \"", axes.name(),
        "\", expected one axis, ", kContext.name(), ", ", kBatch.name(), ", ",
        kTensorReplicas.name(), ", ", kExpertReplicas.name(), " or all");
  return *found;
}

}  // namespace tessera
