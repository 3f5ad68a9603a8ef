#include "launcher/life_plan.h"

#include <numeric>

#include "kernels/core/error.h"
#include "launcher/placement.h"
#include "runtime/config/train.pb.h"
#include "runtime/train/mesh_search.h"

namespace tessera {

namespace {

// Rates and memory only order meshes here: those of the usual machine will do.
Hardware hardware_of(const TrainConfig& config, const std::vector<HostSlots>& hosts) {
  Hardware hardware =
      find_hardware(config.runtime().device() == RuntimeConfig::GPU ? "h100" : "cpu");
  hardware.node_ranks = 0;
  for (const HostSlots& host : hosts) {
    hardware.node_ranks = std::gcd(hardware.node_ranks, host.slots);
  }
  return hardware;
}

}  // namespace

std::optional<LifePlan> plan_life(const TrainConfig& config, const JobSize& job,
                                  const std::vector<HostSlots>& usable) {
  const int slots = slots_of(usable);
  if (slots >= job.ranks) {
    return LifePlan{.hosts = filled_hosts(usable, job.ranks), .ranks = job.ranks, .mesh = {}};
  }
  if (usable.empty() || static_cast<int>(usable.size()) < job.least_hosts) return {};
  const Hardware hardware = hardware_of(config, usable);
  const int ranks = most_feasible_ranks(config, slots, hardware);
  if (ranks == 0) return {};
  return LifePlan{.hosts = filled_hosts(usable, ranks),
                  .ranks = ranks,
                  .mesh = search_meshes(config, ranks, hardware, 1).best.front().shape};
}

std::vector<std::string> mesh_overrides(const MeshShape& shape) {
  return {"--set", concat("mesh.data=", shape.data),
          "--set", concat("mesh.expert=", shape.expert),
          "--set", concat("mesh.sequence=", shape.sequence),
          "--set", concat("mesh.tensor=", shape.tensor)};
}

}  // namespace tessera
