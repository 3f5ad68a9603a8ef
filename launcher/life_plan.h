#pragma once

#include <optional>
#include <string>
#include <vector>

#include "launcher/host_facts.h"
#include "launcher/mpirun.h"
#include "parallel/process_mesh.h"

namespace tessera {

class TrainConfig;

/// What a job asks for.
struct JobSize {
  int ranks = 1;
  /// With that many hosts it starts even when they have too few slots for `ranks`.
  int least_hosts = 1;
};

/// One life of a job: from a start to its end.
struct LifePlan {
  std::vector<HostSlots> hosts;  ///< each with the ranks that it takes
  int ranks = 0;
  std::optional<MeshShape> mesh;      ///< instead of the configuration's
  std::vector<HostFacts> facts = {};  ///< of those hosts, when they were asked
};

/// The next life on the hosts that can be used now. As many ranks as asked for keep the mesh of the
/// configuration; hosts with fewer slots get the best mesh (runtime/train/mesh_search.h) of the
/// largest number of ranks that the model and its batch, which stays the same, can be split over,
/// with tensor groups inside hosts. Nothing when there are too few hosts for that.
std::optional<LifePlan> plan_life(const TrainConfig& config, const JobSize& job,
                                  const std::vector<HostSlots>& usable);

/// {"--set", "mesh.data=2", ...}: the arguments of train that make this its mesh.
std::vector<std::string> mesh_overrides(const MeshShape& shape);

}  // namespace tessera
