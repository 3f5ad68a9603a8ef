#include "launcher/mpirun.h"

#include <algorithm>
#include <charconv>

#include "kernels/core/error.h"

namespace tessera {

namespace {

constexpr int kMostSlots = 4096;

HostSlots parse_host(const std::string& part) {
  const size_t colon = part.find(':');
  HostSlots host{.name = part.substr(0, colon), .slots = 1};
  const bool plain =
      !host.name.empty() && host.name.find_first_not_of(
                                "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                "0123456789.-_") == std::string::npos;
  bool counted = true;
  if (colon != std::string::npos) {
    const char* begin = part.data() + colon + 1;
    const char* end = part.data() + part.size();
    const auto [stopped, error] = std::from_chars(begin, end, host.slots);
    counted = error == std::errc() && stopped == end && host.slots >= 1 && host.slots <= kMostSlots;
  }
  if (!plain || !counted || host.name.front() == '-') {
    throw Error(ExitCode::kUsage, concat("--hosts: '", part, "' is no host, expected NAME or NAME:",
                                         "SLOTS with 1 to ", kMostSlots, " slots, as a:8,b:8"));
  }
  return host;
}

// How many cores each rank can have for itself; 0: not one.
int cores_of_a_rank(const MpirunOptions& options) {
  int most = options.hosts.empty() ? options.ranks : 1;
  for (const HostSlots& host : options.hosts)
    most = std::max(most, std::min(host.slots, options.ranks));
  return options.cores / most;
}

}  // namespace

std::vector<HostSlots> parse_hosts(const std::string& text) {
  std::vector<HostSlots> hosts;
  for (size_t begin = 0;;) {
    const size_t comma = text.find(',', begin);
    HostSlots host = parse_host(text.substr(begin, comma - begin));
    const auto same = [&](const HostSlots& other) { return other.name == host.name; };
    if (std::any_of(hosts.begin(), hosts.end(), same)) {
      throw Error(ExitCode::kUsage, concat("--hosts: ", host.name,
                                           " is named twice; give it once "
                                           "with all of its slots"));
    }
    hosts.push_back(std::move(host));
    if (comma == std::string::npos) return hosts;
    begin = comma + 1;
  }
}

std::vector<std::string> mpirun_command(const MpirunOptions& options,
                                        const std::vector<std::string>& program) {
  std::vector<std::string> words{"mpirun", "-q", "-np", std::to_string(options.ranks)};
  if (options.root) words.emplace_back("--allow-run-as-root");
  if (!options.hosts.empty()) {
    std::string list;
    for (const HostSlots& host : options.hosts) {
      list += concat(list.empty() ? "" : ",", host.name, ":", host.slots);
    }
    words.insert(words.end(), {"--host", list});
  }
  const int cores = cores_of_a_rank(options);
  if (options.bind && cores >= 1) {
    words.insert(words.end(), {"--map-by", concat("slot:PE=", cores), "--bind-to", "core"});
  } else {
    words.insert(words.end(), {"--map-by", "slot", "--bind-to", "none"});
    if (options.hosts.empty()) words.emplace_back("--oversubscribe");
  }
  words.insert(words.end(), program.begin(), program.end());
  return words;
}

}  // namespace tessera
