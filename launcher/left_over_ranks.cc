#include "launcher/left_over_ranks.h"

#include <unistd.h>

#include <charconv>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "kernels/core/error.h"

namespace tessera {

namespace {

constexpr std::chrono::seconds kPatience{3};

// A zombie has no environment any more, and what belongs to another user cannot be read.
bool belongs_to(pid_t process, const std::string& launch) {
  std::ifstream in(concat("/proc/", process, "/environ"), std::ios::binary);
  const std::string wanted = concat(kLaunchVariable, "=", launch);
  for (std::string variable; std::getline(in, variable, '\0');) {
    if (variable == wanted) return true;
  }
  return false;
}

std::vector<pid_t> ranks_of(const std::string& launch) {
  std::vector<pid_t> found;
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", none)) {
    const std::string name = entry.path().filename().string();
    pid_t process = 0;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), process);
    if (error != std::errc() || end != name.data() + name.size() || process == getpid()) continue;
    if (belongs_to(process, launch)) found.push_back(process);
  }
  return found;
}

}  // namespace

LeftOverRanks end_left_over_ranks(const std::string& launch) {
  std::vector<pid_t> left = ranks_of(launch);
  std::set<pid_t> all(left.begin(), left.end());
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (!left.empty() && std::chrono::steady_clock::now() < end) {
    for (const pid_t process : left) kill(process, SIGKILL);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    left = ranks_of(launch);  // those that they have started meanwhile, too
    all.insert(left.begin(), left.end());
  }
  const int remaining = static_cast<int>(left.size());
  return {.ended = static_cast<int>(all.size()) - remaining, .remaining = remaining};
}

}  // namespace tessera
