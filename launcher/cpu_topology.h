#pragma once

#include <filesystem>
#include <vector>

namespace tessera {

/// Cores of a host, as ranks are bound to them: a core is what its hardware threads share.
struct CpuTopology {
  int cores = 1;              ///< in all
  int numa_domains = 1;       ///< that have cores
  int cores_of_a_domain = 1;  ///< of the one that has fewest

  friend bool operator==(const CpuTopology&, const CpuTopology&) = default;
};

/// Of the hardware threads that this process may run on.
CpuTopology cpu_topology();

/// Of these hardware threads, as the files under `system` describe them (/sys/devices/system). What
/// is not described there is a core of its own, in one domain with the others.
CpuTopology cpu_topology(const std::vector<int>& threads, const std::filesystem::path& system);

}  // namespace tessera
