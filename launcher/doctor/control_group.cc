#include "launcher/doctor/control_group.h"

#include <algorithm>

#include "launcher/doctor/words.h"

namespace tessera {

namespace {

// Version 1 says "no limit" with the largest number of pages.
constexpr double kNoLimit = 1e18;

std::optional<double> number_of(const Machine& machine, const std::string& path) {
  return number_in(machine.file(path).value_or(""));
}

void take_memory(GroupLimits& limits, std::optional<double> memory, std::optional<double> used) {
  if (!memory || *memory >= kNoLimit || (limits.memory && *limits.memory <= *memory)) return;
  limits.memory = memory;
  limits.used = used;
}

void take_cores(GroupLimits& limits, std::optional<double> quota, std::optional<double> period) {
  if (!quota || !period || *quota <= 0 || *period <= 0) return;
  limits.cores = std::min(limits.cores.value_or(kNoLimit), *quota / *period);
}

void read_version_2(const Machine& machine, const std::string& folder, GroupLimits& limits) {
  take_memory(limits, number_of(machine, folder + "/memory.max"),
              number_of(machine, folder + "/memory.current"));
  const std::string cores = machine.file(folder + "/cpu.max").value_or("");
  const std::vector<std::string> words = words_of(cores);
  if (words.size() == 2) take_cores(limits, number_in(words[0]), number_in(words[1]));
  const auto killed = value_of(machine.file(folder + "/memory.events").value_or(""), "oom_kill ");
  limits.killed = std::max(limits.killed, whole(number_in(killed.value_or("")).value_or(0)));
}

void read_version_1(const Machine& machine, const std::string& controller,
                    const std::string& folder, GroupLimits& limits) {
  if (controller == "memory") {
    take_memory(limits, number_of(machine, folder + "/memory.limit_in_bytes"),
                number_of(machine, folder + "/memory.usage_in_bytes"));
  } else if (controller == "cpu") {
    take_cores(limits, number_of(machine, folder + "/cpu.cfs_quota_us"),
               number_of(machine, folder + "/cpu.cfs_period_us"));
  }
}

}  // namespace

GroupLimits group_limits(const Machine& machine) {
  const std::string root = "/sys/fs/cgroup";
  GroupLimits limits;
  // "4:memory:/a/b" of version 1, "0::/a/b" of version 2. In a container the path may be that
  // outside, which is not there: its own group is then the root.
  for (const std::string& line : lines_in(machine.file("/proc/self/cgroup").value_or(""))) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    std::string path = line.substr(second + 1);
    while (path.ends_with('/')) path.pop_back();
    std::vector<std::string> controllers =
        words_of(line.substr(first + 1, second - first - 1), ",");
    if (controllers.empty()) controllers.emplace_back();
    for (;; path.erase(path.rfind('/'))) {
      for (const std::string& controller : controllers) {
        if (controller.empty()) {
          read_version_2(machine, root + path, limits);
          read_version_2(machine, root + "/unified" + path, limits);
        } else {
          read_version_1(machine, controller, root + "/" + controller + path, limits);
        }
      }
      if (path.find('/') == std::string::npos) break;
    }
  }
  return limits;
}

}  // namespace tessera
