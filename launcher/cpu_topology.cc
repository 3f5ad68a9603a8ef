#include "launcher/cpu_topology.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <thread>

#include "kernels/core/error.h"

namespace tessera {

namespace {

// "0-3,8" -> its first number; -1: there is none.
int first_number(const std::filesystem::path& file) {
  int first = -1;
  std::ifstream(file) >> first;
  return first;
}

// The domain that hardware thread `thread` is in; 0 where domains are not known.
int domain_of(int thread, const std::filesystem::path& system) {
  const std::string cpu = concat("cpu", thread);
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator(system / "node", none)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("node") && std::filesystem::exists(entry.path() / cpu, none)) {
      return std::atoi(name.c_str() + 4);
    }
  }
  return 0;
}

}  // namespace

CpuTopology cpu_topology(const std::vector<int>& threads, const std::filesystem::path& system) {
  std::map<int, std::set<int>> domains;  // a core has the number of its first hardware thread
  for (const int thread : threads) {
    const int core =
        first_number(system / "cpu" / concat("cpu", thread) / "topology/thread_siblings_list");
    domains[domain_of(thread, system)].insert(core < 0 ? thread : core);
  }
  CpuTopology topology{.cores = 0,
                       .numa_domains = static_cast<int>(domains.size()),
                       .cores_of_a_domain = std::numeric_limits<int>::max()};
  for (const auto& [number, cores] : domains) {
    const int count = static_cast<int>(cores.size());
    topology.cores += count;
    topology.cores_of_a_domain = std::min(topology.cores_of_a_domain, count);
  }
  return domains.empty() ? CpuTopology{} : topology;
}

CpuTopology cpu_topology() {
  std::vector<int> threads;
  cpu_set_t set;
  CPU_ZERO(&set);
  const bool known = sched_getaffinity(0, sizeof(set), &set) == 0;
  const int all = known ? CPU_SETSIZE : static_cast<int>(std::thread::hardware_concurrency());
  for (int thread = 0; thread < all; ++thread) {
    if (!known || CPU_ISSET(static_cast<size_t>(thread), &set)) threads.push_back(thread);
  }
  return cpu_topology(threads, "/sys/devices/system");
}

}  // namespace tessera
