#include "launcher/host_facts.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <sstream>

#include "checkpoint/file_hash.h"
#include "kernels/core/error.h"
#include "launcher/commands/train.h"
#include "launcher/left_over_ranks.h"
#include "launcher/network_interfaces.h"
#include "launcher/version.h"
#include "parallel/mpi_communicator.h"
#include "runtime/config/text_writer.h"
#include "runtime/config/train.pb.h"

namespace tessera {

namespace {

constexpr const char* kLineBegin = "tessera-host ";

std::string hash_of(const std::string& text) {
  return hash128(std::as_bytes(std::span(text)));
}

// Empty when it cannot be read.
std::string content_of(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Where a program that is looked for in PATH lies.
std::string find_program(const std::string& name) {
  const char* path = std::getenv("PATH");
  std::istringstream folders(path == nullptr ? "" : path);
  for (std::string folder; std::getline(folders, folder, ':');) {
    const std::string file = folder + "/" + name;
    if (access(file.c_str(), X_OK) == 0) return file;
  }
  return "none";
}

std::string interfaces() {
  std::string text;
  for (const NetworkInterface& one : network_interfaces()) {
    if (one.up) text += concat(text.empty() ? "" : " ", one.name, "=", one.address);
  }
  return text;
}

// Empty when a file can be made in `directory`, else why not. Its name is nobody else's: hosts ask
// at the same time, and two may have one name.
std::string write_error(const std::filesystem::path& directory, const std::string& marker) {
  std::string file = (directory / concat(marker, ".XXXXXX")).string();
  const int opened = mkostemp(file.data(), O_CLOEXEC);
  if (opened < 0) return std::strerror(errno);
  close(opened);
  return unlink(file.c_str()) == 0 ? "" : std::strerror(errno);
}

int number(const HostFacts& facts, const std::string& name) {
  const auto found = facts.find(name);
  return found == facts.end() ? 1 : std::max(1, std::atoi(found->second.c_str()));
}

// Interface to network, of those that have an address.
std::map<std::string, std::string> networks(const HostFacts& facts) {
  std::map<std::string, std::string> found;
  const auto fact = facts.find("interfaces");
  std::istringstream words(fact == facts.end() ? "" : fact->second);
  for (std::string word; words >> word;) {
    const size_t equal = word.find('=');
    if (equal == std::string::npos) continue;
    const std::string network = network_of(word.substr(equal + 1));
    if (!network.empty()) found[word.substr(0, equal)] = network;
  }
  return found;
}

}  // namespace

CpuTopology common_cpus(const std::vector<HostFacts>& hosts) {
  std::optional<CpuTopology> common;
  for (const HostFacts& facts : hosts) {
    const CpuTopology cpus{.cores = number(facts, "cores"),
                           .numa_domains = number(facts, "numa_domains"),
                           .cores_of_a_domain = number(facts, "cores_of_a_domain")};
    if (!common || *common == cpus) {
      common = cpus;
    } else {
      const int cores = std::min(common->cores, cpus.cores);
      common = CpuTopology{.cores = cores, .numa_domains = 1, .cores_of_a_domain = cores};
    }
  }
  return common.value_or(CpuTopology{});
}

std::string common_network(const std::vector<HostFacts>& hosts, const HostFacts& own,
                           const std::string& interface) {
  std::set<std::string> found;
  for (const HostFacts& facts : hosts) found.insert(networks(facts)[interface]);
  for (const auto& [name, network] : networks(own)) {
    if (found.size() == 1 && found.contains(network)) return network;
  }
  return "";
}

std::string common_interfaces(const std::vector<HostFacts>& hosts) {
  std::string text;
  if (hosts.empty()) return text;
  for (const auto& [name, network] : networks(hosts.front())) {
    const bool common = std::all_of(hosts.begin(), hosts.end(), [&](const HostFacts& facts) {
      return networks(facts)[name] == network;
    });
    if (!common || network.starts_with("127.")) continue;
    text += concat(text.empty() ? "" : ", ", name, " (", network, ")");
  }
  return text;
}

void tell_host_facts(const HostQuestion& question,
                     const std::function<void(const std::string&, const std::string&)>& tell) {
  tell("version", version_text());
  tell("binary", hash_of(content_of("/proc/self/exe")));
  tell("mpi", MpiEnvironment::library());
  tell("orted", find_program("orted"));
  const CpuTopology cpus = cpu_topology();
  tell("cores", concat(cpus.cores));
  tell("numa_domains", concat(cpus.numa_domains));
  tell("cores_of_a_domain", concat(cpus.cores_of_a_domain));
  tell("interfaces", interfaces());
  const LeftOverRanks ranks = end_left_over_ranks(question.launch);
  tell("ended", concat(ranks.ended));
  tell("remaining", concat(ranks.remaining));
  std::unique_ptr<TrainConfig> config;
  try {
    config = config_of_train(question.train);
  } catch (const Error& error) {
    tell("config_error", error.what());
    return;
  }
  tell("config", hash_of(to_text(*config)));
  const std::string data =
      content_of(std::filesystem::path(config->data().path()) / "dataset.json");
  tell("data", data.empty() ? "none" : hash_of(data));
  const std::filesystem::path run_directory = config->run_dir();
  std::error_code none;
  const bool seen = std::filesystem::exists(run_directory / question.marker, none);
  tell("marker", seen ? "seen" : "unseen");
  if (!seen) return;
  const std::string error = write_error(run_directory, question.marker);
  if (!error.empty()) tell("run_dir_error", error);
}

std::string fact_line(const std::string& name, const std::string& value) {
  std::string line = concat(kLineBegin, name, " ");
  for (const char c : value) {
    if (c == '\n') {
      line += "; ";
    } else {
      line += c;
    }
  }
  return line + "\n";
}

HostFacts parse_facts(const std::string& output) {
  HostFacts facts;
  std::istringstream lines(output);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(kLineBegin)) continue;
    const size_t begin = std::strlen(kLineBegin);
    const size_t space = line.find(' ', begin);
    if (space == std::string::npos) continue;
    facts[line.substr(begin, space - begin)] = line.substr(space + 1);
  }
  return facts;
}

}  // namespace tessera
