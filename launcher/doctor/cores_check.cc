#include <algorithm>
#include <set>

#include "kernels/core/error.h"
#include "launcher/doctor/checks.h"
#include "launcher/doctor/control_group.h"
#include "launcher/doctor/words.h"

namespace tessera {

namespace {

// Cores, not threads of cores: the sets of threads that share one. 0: not told.
int physical_cores(const Machine& machine) {
  const std::string folder = "/sys/devices/system/cpu";
  std::set<std::string> cores;
  for (const std::string& name : machine.names(folder)) {
    if (!name.starts_with("cpu") || !number_in(name.substr(3))) continue;
    const auto siblings = machine.file(concat(folder, "/", name, "/topology/thread_siblings_list"));
    if (siblings) cores.insert(trimmed(*siblings));
  }
  return static_cast<int>(cores.size());
}

int numa_nodes(const Machine& machine) {
  const std::vector<std::string> names = machine.names("/sys/devices/system/node");
  return static_cast<int>(std::count_if(names.begin(), names.end(), [](const std::string& name) {
    return name.starts_with("node") && number_in(name.substr(4));
  }));
}

}  // namespace

Findings check_cores(const Machine& machine) {
  const int online = count_of_ranges(machine.file("/sys/devices/system/cpu/online").value_or(""));
  const std::string status = machine.file("/proc/self/status").value_or("");
  const std::string list = value_of(status, "Cpus_allowed_list").value_or("");
  const int allowed = count_of_ranges(list);
  if (allowed == 0) return {{Verdict::kOk, "cores", "the kernel does not tell: not looked at"}};
  std::string found = concat("this process may use ", allowed, " processors");
  if (online > 0) found += concat(" of ", online);
  if (const int cores = physical_cores(machine); cores > 0) found += concat(", ", cores, " cores");
  if (const int nodes = numa_nodes(machine); nodes > 1) found += concat(", ", nodes, " NUMA nodes");

  Findings findings;
  if (online > allowed) {
    findings.push_back(
        {Verdict::kWarn, "cores", concat(found, ": it is bound to ", list),
         "right for one rank of many; else look at the binding of mpirun "
         "(--bind-to none), srun (--cpus-per-task) or the container (--cpuset-cpus)"});
  } else {
    findings.push_back({Verdict::kOk, "cores", found});
  }
  const auto quota = group_limits(machine).cores;
  if (quota && *quota < allowed) {
    findings.push_back({Verdict::kWarn, "cores",
                        concat("the control group gives the time of ", *quota,
                               " processors only: threads beyond are stopped in every period"),
                        "give the container or the job whole processors (--cpus), and set "
                        "runtime.threads"});
  }
  const auto load = number_in(machine.file("/proc/loadavg").value_or(""));
  if (load && online > 0 && *load > 1.0 * online) {
    findings.push_back(
        {Verdict::kWarn, "cores",
         concat(*load, " processes want the ", online, " processors (load of the ", "last minute)"),
         "steps will be slow and uneven: end the others, or wait for them"});
  }
  return findings;
}

}  // namespace tessera
