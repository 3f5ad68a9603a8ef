#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "parallel/communicator.h"

namespace tessera {

class MeshConfig;

/// Axes of the process mesh, outermost first: ranks that differ only in kTensor are neighbours.
/// For parameters that are not routed experts, kExpert is one more data axis.
enum class Axis : uint8_t { kData, kExpert, kSequence, kTensor };
inline constexpr int kAxes = 4;

/// "data", "expert", "sequence" or "tensor".
const char* name_of(Axis axis);

/// The extents of the mesh.
struct MeshShape {
  int data = 1;
  int expert = 1;
  int sequence = 1;
  int tensor = 1;

  int ranks() const { return data * expert * sequence * tensor; }
  friend bool operator==(const MeshShape&, const MeshShape&) = default;
};

/// "data 2 x expert 1 x sequence 1 x tensor 4".
std::string to_string(const MeshShape& shape);

/// The mesh of a configuration in a job of `ranks` ranks. An axis that is not set is 1; data, when
/// it is not set, is what the other axes leave over. Throws Error(kUsage) with the nearest mesh
/// that fits when an extent is negative or the product is not `ranks`.
MeshShape mesh_shape(const MeshConfig& config, int ranks);

/// This rank's place in the mesh, and one communicator along each axis.
class ProcessMesh {
 public:
  /// Collective over `world`, which must outlive the mesh. Throws Error(kUsage) with the nearest
  /// mesh that fits when the shape does not multiply to `world.size()`.
  ProcessMesh(Communicator& world, const MeshShape& shape);

  Communicator& world() const { return world_; }
  const MeshShape& shape() const { return shape_; }
  /// The ranks that differ from this one only in `axis`; rank() there is the coordinate.
  Communicator& along(Axis axis) const { return *along_[static_cast<size_t>(axis)]; }
  int size(Axis axis) const { return along(axis).size(); }
  int coordinate(Axis axis) const { return along(axis).rank(); }

 private:
  Communicator& world_;
  MeshShape shape_;
  std::array<std::unique_ptr<Communicator>, kAxes> along_;
};

}  // namespace tessera
