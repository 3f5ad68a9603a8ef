#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace tessera {

class MeshConfig;

/// Axes of the process mesh, outermost first: ranks that differ only in kTensor are neighbours.
/// For parameters that are not routed experts, kExpert is one more data axis.
enum class Axis : uint8_t { kData, kExpert, kSequence, kTensor };
inline constexpr int kAxes = 4;

/// "data", "expert", "sequence" or "tensor".
const char* name_of(Axis axis);

/// Some of the axes.
class AxisSet {
 public:
  constexpr AxisSet() = default;
  constexpr AxisSet(std::initializer_list<Axis> axes) {
    for (const Axis axis : axes) bits_ |= static_cast<uint8_t>(1 << static_cast<int>(axis));
  }

  constexpr bool contains(Axis axis) const { return (bits_ >> static_cast<int>(axis) & 1) != 0; }
  constexpr AxisSet without(Axis axis) const {
    AxisSet less = *this;
    less.bits_ &= static_cast<uint8_t>(~(1 << static_cast<int>(axis)));
    return less;
  }
  /// "sequence*tensor"; "world" for all axes.
  std::string name() const;
  /// One bit for each axis, kData the lowest.
  constexpr uint8_t bits() const { return bits_; }

  friend constexpr bool operator==(const AxisSet&, const AxisSet&) = default;

 private:
  uint8_t bits_ = 0;
};

/// The groups of ranks that share work, or hold the same parameters.
inline constexpr AxisSet kContext{Axis::kSequence, Axis::kTensor};
inline constexpr AxisSet kBatch{Axis::kData, Axis::kExpert};
inline constexpr AxisSet kTensorReplicas{Axis::kData, Axis::kExpert, Axis::kSequence};
inline constexpr AxisSet kExpertReplicas{Axis::kData, Axis::kSequence, Axis::kTensor};
inline constexpr AxisSet kAllAxes{Axis::kData, Axis::kExpert, Axis::kSequence, Axis::kTensor};

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

/// This rank's place in the mesh, one communicator along each axis, and one for each of the sets
/// above.
class ProcessMesh {
 public:
  /// Collective over `world`, which must outlive the mesh. Throws Error(kUsage) with the nearest
  /// mesh that fits when the shape does not multiply to `world.size()`.
  ProcessMesh(Communicator& world, const MeshShape& shape);

  Communicator& world() const { return world_; }
  const MeshShape& shape() const { return shape_; }
  /// The ranks that differ from this one only in `axis`; rank() there is the coordinate.
  Communicator& along(Axis axis) const { return *along_[static_cast<size_t>(axis)]; }
  /// The ranks that differ from this one only in `axes`, ordered by their rank in the world. One
  /// axis, or one of the sets above, else it throws. A set that has the ranks of another one,
  /// because axes have only one rank, shares its communicator and so its name: with a sequence
  /// axis of 1, group(kContext) is along(kTensor).
  Communicator& group(AxisSet axes) const;
  int size(Axis axis) const { return along(axis).size(); }
  int coordinate(Axis axis) const { return along(axis).rank(); }

 private:
  Communicator& world_;
  MeshShape shape_;
  std::array<Communicator*, kAxes> along_{};
  std::array<Communicator*, 1 << kAxes> groups_{};  // by AxisSet::bits, nullptr where none is
  std::vector<std::unique_ptr<Communicator>> owned_;
};

}  // namespace tessera
