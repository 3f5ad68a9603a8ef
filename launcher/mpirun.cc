#include "launcher/mpirun.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "kernels/core/error.h"
#include "launcher/ssh.h"

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

// The most ranks that a host has.
int ranks_of_a_host(const MpirunOptions& options) {
  int most = options.hosts.empty() ? options.ranks : 1;
  for (const HostSlots& host : options.hosts)
    most = std::max(most, std::min(host.slots, options.ranks));
  return most;
}

// "slot:PE=4": the next free cores, wherever they are. "numa:PE=4": those of the next NUMA domain
// that has as many. Empty: there is no core for each rank.
std::string mapping(const CpuTopology& cpus, int ranks) {
  const int domains = cpus.numa_domains;
  if (cpus.cores < ranks) return "";
  if (domains <= 1) return concat("slot:PE=", cpus.cores / ranks);
  if (ranks < domains) return concat("slot:PE=", domains / ranks * cpus.cores_of_a_domain);
  const int cores = cpus.cores_of_a_domain / ((ranks + domains - 1) / domains);
  return cores >= 1 ? concat("numa:PE=", cores) : "slot:PE=1";
}

// Ranks share what they can: no questions from ssh, and no connection that is dead unnoticed.
std::vector<std::string> several_hosts(const MpirunOptions& options) {
  std::string ssh;
  for (const std::string& word : ssh_options()) ssh += concat(ssh.empty() ? "" : " ", word);
  // All connections from here, as they were checked, and none from host to host.
  std::vector<std::string> words{"--host", to_text(options.hosts),  "--mca", "plm_rsh_args", ssh,
                                 "--mca",  "plm_rsh_no_tree_spawn", "1"};
  for (const auto& [name, seconds] : {std::pair("time", 5), {"intvl", 2}, {"probes", 4}}) {
    words.insert(words.end(), {"--mca", concat("oob_tcp_keepalive_", name), concat(seconds)});
  }
  for (const std::string& variable : options.environment) {
    words.insert(words.end(), {"-x", variable});
  }
  return words;
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

std::string to_text(const std::vector<HostSlots>& hosts) {
  std::string text;
  for (const HostSlots& host : hosts) {
    text += concat(text.empty() ? "" : ",", host.name, ":", host.slots);
  }
  return text;
}

std::vector<std::string> mpirun_command(const MpirunOptions& options,
                                        const std::vector<std::string>& program) {
  // Without -q it has a page to say about every rank that ends with another code than 0.
  std::vector<std::string> words{"mpirun", "-q", "-np", std::to_string(options.ranks)};
  if (options.root) words.emplace_back("--allow-run-as-root");
  if (!options.hosts.empty()) {
    const std::vector<std::string> more = several_hosts(options);
    words.insert(words.end(), more.begin(), more.end());
  }
  if (!options.interface.empty()) {
    // NCCL takes a name for the beginning of one, but for this "=".
    words.insert(words.end(), {"--mca", "btl_tcp_if_include", options.interface, "-x",
                               concat("NCCL_SOCKET_IFNAME==", options.interface)});
  }
  if (!options.network.empty()) {
    words.insert(words.end(), {"--mca", "oob_tcp_if_include", options.network});
  }
  const std::string map = mapping(options.cpus, ranks_of_a_host(options));
  if (options.bind && !map.empty()) {
    words.insert(words.end(), {"--map-by", map, "--bind-to", "core"});
  } else {
    words.insert(words.end(), {"--map-by", "slot", "--bind-to", "none"});
    if (options.hosts.empty()) words.emplace_back("--oversubscribe");
  }
  words.insert(words.end(), program.begin(), program.end());
  return words;
}

}  // namespace tessera
