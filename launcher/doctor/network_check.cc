#include <algorithm>

#include "kernels/core/error.h"
#include "launcher/doctor/checks.h"
#include "launcher/doctor/interfaces.h"
#include "launcher/doctor/words.h"
#include "runtime/config/wording.h"

namespace tessera {

namespace {

constexpr double kPatience = 3;        // seconds for a command
constexpr double kSlow = 1000;         // Mbit/s
constexpr size_t kMostInterfaces = 8;  // shown one by one

constexpr const char* kMpiInclude = "OMPI_MCA_btl_tcp_if_include";
constexpr const char* kNcclChoice = "NCCL_SOCKET_IFNAME";

std::vector<std::string> names_of(const std::vector<Interface>& interfaces) {
  std::vector<std::string> names;
  for (const Interface& one : interfaces) names.push_back(one.name);
  return names;
}

// The first that other hosts are likely to be behind.
std::string likely(const std::vector<Interface>& all) {
  for (const Interface& one : all) {
    if (one.usable() && !one.inner()) return one.name;
  }
  return "NIC";
}

Findings judge_interfaces(const std::vector<Interface>& all) {
  Findings findings;
  std::vector<std::string> others;
  size_t shown_ones = 0;
  for (const Interface& one : all) {
    if (one.loopback) continue;
    if (!one.usable() || one.inner() || ++shown_ones > kMostInterfaces) {
      others.push_back(one.name + (one.up ? "" : " (down)"));
    } else if (one.speed && *one.speed < kSlow) {
      findings.push_back({Verdict::kWarn, "network", to_string(one),
                          "below 1 Gbit/s: look at cable and switch (ethtool), or use another"});
    } else {
      findings.push_back({Verdict::kOk, "network", to_string(one)});
    }
  }
  if (findings.empty()) {
    findings.push_back({Verdict::kOk, "network",
                        "no interface but loopback has an address: this host trains alone"});
  }
  if (others.size() > kMostInterfaces) {
    const size_t more = others.size() - kMostInterfaces;
    others.resize(kMostInterfaces);
    others.push_back(concat(more, " more"));
  }
  if (!others.empty()) findings.back().found += concat("; besides: ", listed(others));
  return findings;
}

Findings judge_fabric(const std::vector<FabricPort>& ports) {
  Findings findings;
  for (const FabricPort& port : ports) {
    const std::string found = concat(port.name, " ", port.link, " ", port.rate);
    if (port.active) {
      findings.push_back({Verdict::kOk, "fabric", found});
    } else {
      findings.push_back({Verdict::kWarn, "fabric", concat(found, " is not active"),
                          "look at cable, switch and subnet manager (ibstat)"});
    }
  }
  return findings;
}

/// How Open MPI chooses.
struct MpiChoice {
  std::string include;
  std::string exclude = "127.0.0.1/8,sppp";  // its default
  bool ucx = false;                          // it can leave the choice to UCX
};

MpiChoice mpi_choice(const Machine& machine) {
  MpiChoice choice;
  // Settings come from the environment and from several files, which ompi_info knows.
  const CapturedCommand said =
      machine.ask({"ompi_info", "--parsable", "--param", "btl", "tcp", "--level", "9"}, kPatience);
  const std::string head = "mca:btl:tcp:param:btl_tcp_if_";
  choice.include =
      value_of(said.output, head + "include:value").value_or(machine.variable(kMpiInclude));
  choice.exclude = value_of(said.output, head + "exclude:value").value_or(choice.exclude);
  if (said.timed_out) return choice;
  const CapturedCommand parts = machine.ask({"ompi_info", "--parsable"}, kPatience);
  choice.ucx = parts.output.find("mca:pml:ucx:") != std::string::npos;
  return choice;
}

// Parts of a list that no interface here is meant by.
std::vector<std::string> unknown_parts(const std::vector<Interface>& all, const std::string& list) {
  std::vector<std::string> unknown;
  for (const std::string& part : words_of(list, ", ")) {
    if (mpi_interfaces(all, part, "").empty()) unknown.push_back(part);
  }
  return unknown;
}

Finding judge_mpi(const std::vector<Interface>& all, const MpiChoice& choice,
                  const std::vector<FabricPort>& ports) {
  const std::string set = concat("btl_tcp_if_include is ", choice.include);
  if (!choice.include.empty() && choice.exclude != MpiChoice().exclude) {
    return {Verdict::kFail, "mpi-net",
            concat(set, " and btl_tcp_if_exclude is ", choice.exclude,
                   ": Open MPI takes only one of them"),
            "unset one"};
  }
  if (const auto unknown = unknown_parts(all, choice.include); !unknown.empty()) {
    return {Verdict::kFail, "mpi-net",
            concat(set, ", and no interface that is up is ", listed(unknown),
                   did_you_mean(unknown.front(), names_of(all))),
            concat("export ", kMpiInclude, "=", likely(all))};
  }
  const std::vector<Interface> used = mpi_interfaces(all, choice.include, choice.exclude);
  std::string found = concat("Open MPI's TCP uses ", used.empty() ? "none: this host trains alone"
                                                                  : listed(names_of(used)));
  if (!choice.include.empty()) found += concat(" (", set, ")");
  const bool fabric =
      std::any_of(ports.begin(), ports.end(), [](const FabricPort& port) { return port.active; });
  if (fabric) {
    found += choice.ucx ? "; it prefers the fabric, through UCX"
                        : "; it has no UCX for the fabric, and uses it through openib at best";
  }
  const bool wrong =
      choice.include.empty() &&
      std::any_of(used.begin(), used.end(), [](const Interface& one) { return one.inner(); });
  if (wrong && used.size() > 1) {
    return {Verdict::kWarn, "mpi-net",
            concat(found, "; some seem to lead to containers only, where messages get lost"),
            concat("export ", kMpiInclude, "=", likely(all))};
  }
  return {Verdict::kOk, "mpi-net", found};
}

Finding judge_nccl(const std::vector<Interface>& all, const std::string& choice,
                   const std::vector<FabricPort>& ports, const char* verb, bool ib_disabled) {
  const std::vector<Interface> used = nccl_interfaces(all, choice);
  if (used.empty()) {
    return {choice.empty() ? Verdict::kOk : Verdict::kFail, "nccl-net",
            choice.empty()
                ? "no interface for NCCL"
                : concat(kNcclChoice, " is ", choice, ", and no interface that is up is meant"),
            choice.empty() ? "" : concat("export ", kNcclChoice, "=", likely(all))};
  }
  const bool fabric = !ib_disabled && std::any_of(ports.begin(), ports.end(),
                                                  [](const auto& port) { return port.active; });
  std::string found =
      concat("NCCL ", verb, " ", fabric ? "the fabric, and for its set-up " : "sockets over ",
             listed(names_of(used)));
  if (!choice.empty()) found += concat(" (", kNcclChoice, " is ", choice, ")");
  if (ib_disabled && !ports.empty()) {
    return {Verdict::kWarn, "nccl-net", concat(found, "; NCCL_IB_DISABLE keeps it from the fabric"),
            "unset NCCL_IB_DISABLE"};
  }
  if (choice.empty() && used.size() > 1 &&
      std::any_of(used.begin(), used.end(), [](const Interface& one) { return one.inner(); })) {
    return {Verdict::kWarn, "nccl-net", concat(found, "; some seem to lead to containers only"),
            concat("export ", kNcclChoice, "=", likely(all))};
  }
  return {Verdict::kOk, "nccl-net", found};
}

// The interface that is meant, and whether MPI, and NCCL if there is a choice of it, use no other.
Findings judge_wanted(const std::vector<Interface>& all, const std::string& wanted,
                      const MpiChoice& choice, const std::optional<std::string>& nccl) {
  const auto one = std::find_if(all.begin(), all.end(),
                                [&](const Interface& each) { return each.name == wanted; });
  if (one == all.end()) {
    return {{Verdict::kFail, "interface",
             concat("there is no interface ", shown(wanted), did_you_mean(wanted, names_of(all))),
             "ip addr shows them"}};
  }
  if (!one->usable() && !one->loopback) {
    return {{Verdict::kFail, "interface",
             concat(to_string(*one), one->up ? " has no address" : " cannot be used"),
             concat("ip link set ", wanted, " up, and give it an address")}};
  }
  const std::vector<std::string> only_it{wanted};
  std::string exports;
  if (names_of(mpi_interfaces(all, choice.include, choice.exclude)) != only_it) {
    exports += concat(" ", kMpiInclude, "=", wanted);
  }
  if (nccl && names_of(nccl_interfaces(all, *nccl)) != only_it) {
    exports += concat(" ", kNcclChoice, "==", wanted);
  }
  const std::string who = nccl ? "MPI and NCCL" : "MPI";
  if (exports.empty()) {
    return {{Verdict::kOk, "interface", concat(who, nccl ? " use " : " uses ", wanted)}};
  }
  return {{Verdict::kWarn, "interface",
           concat(wanted, " is not the only one that ", who, nccl ? " use" : " uses"),
           "export" + exports}};
}

}  // namespace

Findings check_network(const Machine& machine, const Program& program,
                       const std::string& interface) {
  const std::vector<Interface> all = interfaces_of(machine);
  const std::vector<FabricPort> ports = fabric_ports(machine);
  const MpiChoice choice = mpi_choice(machine);
  const std::string nccl = machine.variable(kNcclChoice);
  Findings findings = judge_interfaces(all);
  append(findings, judge_fabric(ports));
  if (program.mpi.find("Open MPI") != std::string::npos) {
    findings.push_back(judge_mpi(all, choice, ports));
  }
  const std::string disabled = machine.variable("NCCL_IB_DISABLE");
  findings.push_back(judge_nccl(all, nccl, ports, program.cuda ? "uses" : "would use",
                                !disabled.empty() && disabled != "0"));
  if (!interface.empty()) {
    const auto used = program.cuda ? std::optional(nccl) : std::nullopt;
    append(findings, judge_wanted(all, interface, choice, used));
  }
  return findings;
}

}  // namespace tessera
