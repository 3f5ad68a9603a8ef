#include "launcher/doctor/hosts_check.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <functional>
#include <future>
#include <map>

#include "kernels/core/error.h"
#include "launcher/doctor/words.h"
#include "launcher/doctor/world_check.h"
#include "launcher/shell.h"
#include "launcher/ssh.h"

namespace tessera {

namespace {

constexpr double kPatience = 30;      // seconds for a host
constexpr double kShortPatience = 3;  // for what is done here
constexpr size_t kMostNames = 6;      // of hosts in a line

std::string some_of(std::vector<std::string> names) {
  if (names.size() > kMostNames) {
    const size_t more = names.size() - kMostNames;
    names.resize(kMostNames);
    names.push_back(concat(more, " more"));
  }
  return listed(names);
}

struct Known {
  const char* sign;  // in what ssh or the shell there says
  const char* found;
  const char* advice;
};

constexpr std::array kKnown = std::to_array<Known>({
    {"Could not resolve hostname", "its name is not known",
     "correct --hosts, or add it to the name service or /etc/hosts"},
    {"Permission denied", "ssh wants a password", "ssh-copy-id to it, then try ssh HOST true"},
    {"Host key verification failed", "ssh does not know its key, or it has changed",
     "look at it with ssh HOST true"},
    {"Connection refused", "it refuses ssh", "start the ssh server there"},
    {"No route to host", "there is no way to it", "is it switched on, and is the network up?"},
    {"timed out", "it does not answer", "is it switched on, and is the network up?"},
    {"error while loading shared libraries", "the program lacks a library there",
     "run scripts/packages.sh there"},
    {"there is no command", "it has an older program", "install the same program on all hosts"},
});

/// Whether `host` is this one: by its name, or by one of its addresses.
bool is_this(const Machine& machine, const std::string& host) {
  std::array<char, 256> buffer{};
  gethostname(buffer.data(), buffer.size() - 1);
  const std::string own = buffer.data();
  if (host == own || host == own.substr(0, own.find('.')) || host == "localhost") return true;
  const std::string known = machine.ask({"getent", "ahosts", host}, kShortPatience).output;
  const std::vector<std::string> words = words_of(known);
  const std::vector<InterfaceAddress> addresses = machine.addresses();
  return std::any_of(addresses.begin(), addresses.end(), [&](const InterfaceAddress& one) {
    return std::find(words.begin(), words.end(), one.address) != words.end();
  });
}

std::vector<std::string> host_words(const Program& program, const CheckupOptions& options) {
  return {program.path, "doctor", "host", options.run_directory, options.marker, options.interface};
}

// Hosts with equal values of what `value` tells.
std::map<std::string, std::vector<std::string>> groups_by(
    const std::vector<HostCheckup>& hosts,
    const std::function<std::string(const Checkup&)>& value) {
  std::map<std::string, std::vector<std::string>> groups;
  for (const HostCheckup& one : hosts) {
    if (one.checkup) groups[value(*one.checkup)].push_back(one.host.name);
  }
  return groups;
}

std::string described(const std::map<std::string, std::vector<std::string>>& groups) {
  std::string text;
  for (const auto& [value, names] : groups) {
    text += concat(text.empty() ? "" : "; ", some_of(names), ": ", value);
  }
  return text;
}

Findings compare_programs(const std::vector<HostCheckup>& hosts, const Program& own) {
  const auto file = [](const Program& program) { return "file " + program.digest.substr(0, 8); };
  const auto identity = [&](const Program& program) {
    return concat(program.version, ", ", file(program));
  };
  Findings findings;
  const auto versions = groups_by(hosts, [](const Checkup& one) { return one.program.version; });
  const bool one_version = versions.size() == 1 && versions.begin()->first == own.version;
  const auto programs = groups_by(hosts, [&](const Checkup& one) {
    return one_version ? file(one.program) : identity(one.program);
  });
  if (one_version && programs.size() == 1 && programs.begin()->first == file(own)) {
    findings.push_back(
        {Verdict::kOk, "program", concat("the same everywhere: ", identity(own), ", ", own.path)});
  } else {
    findings.push_back(
        {Verdict::kFail, "program",
         concat("not the same everywhere: here ", identity(own), "; ", described(programs)),
         concat("copy ", own.path, " to all of them, or run it from a shared file system")});
  }
  const auto libraries = groups_by(hosts, [](const Checkup& one) { return one.program.mpi; });
  if (libraries.size() > 1 || libraries.begin()->first != own.mpi) {
    findings.push_back(
        {Verdict::kFail, "mpi",
         concat("not the same everywhere: here ", own.mpi, "; ", described(libraries)),
         "install one version of MPI on all of them"});
  }
  return findings;
}

Findings compare_numbers(const std::vector<HostCheckup>& hosts) {
  Findings findings;
  std::map<std::string, bool> names;
  for (const HostCheckup& one : hosts) {
    if (!one.checkup) continue;
    for (const auto& [name, value] : one.checkup->numbers) names[name] = true;
  }
  for (const auto& [name, unused] : names) {
    const auto groups = groups_by(hosts, [&, &key = name](const Checkup& checkup) {
      const auto value = checkup.numbers.find(key);
      return value == checkup.numbers.end() ? std::string() : concat(value->second);
    });
    if (groups.size() < 2 || groups.contains("")) continue;
    findings.push_back({Verdict::kWarn, words_of(name).front(),
                        concat(name, " is not the same everywhere: ", described(groups)),
                        name.starts_with("mtu")
                            ? "give all of them, and the switches between, one MTU: large messages "
                              "get lost or slow otherwise"
                            : "every step waits for the slowest host"});
  }
  return findings;
}

Findings compare_names(const std::vector<HostCheckup>& hosts) {
  Findings findings;
  for (const auto& [own, names] : groups_by(hosts, [](const Checkup& one) { return one.host; })) {
    if (names.size() < 2) continue;
    findings.push_back({Verdict::kWarn, "hosts",
                        concat(some_of(names), " are one and the same host, ", own),
                        "name it once, with all of its slots"});
  }
  return findings;
}

Findings compare_slots(const std::vector<HostCheckup>& hosts) {
  Findings findings;
  for (const HostCheckup& one : hosts) {
    if (!one.checkup) continue;
    const auto cores = one.checkup->numbers.find("cores");
    if (cores == one.checkup->numbers.end() || cores->second < 1) continue;
    if (one.host.slots <= cores->second) continue;
    findings.push_back({Verdict::kWarn, "slots",
                        concat(one.host.slots, " ranks would share ", cores->second, " processors"),
                        concat("give it at most ", cores->second, " slots"), one.host.name});
  }
  return findings;
}

// The key of a finding: those with equal keys are told once.
std::string key_of(const Finding& finding, int place) {
  if (finding.verdict == Verdict::kOk) return concat("0 ", finding.subject, " ", place);
  return concat("1 ", finding.subject, "\n", name_of(finding.verdict), finding.found, "\n",
                finding.advice);
}

}  // namespace

std::vector<std::string> host_command(const std::string& host, const Program& program,
                                      const std::vector<std::string>& variables,
                                      const CheckupOptions& options) {
  std::vector<std::string> words{"env"};
  words.insert(words.end(), variables.begin(), variables.end());
  const std::vector<std::string> asked = host_words(program, options);
  words.insert(words.end(), asked.begin(), asked.end());
  return ssh_command(host, shell_line(words));
}

HostCheckup judge_answer(const HostSlots& host, const CapturedCommand& said) {
  HostCheckup answer{.host = host, .checkup = checkup_from(said.output)};
  if (answer.checkup) return answer;
  answer.trouble = {.verdict = Verdict::kFail, .subject = "ssh", .found = "", .hosts = host.name};
  const std::string last = last_line_of(said.errors);
  for (const Known& known : kKnown) {
    if (said.errors.find(known.sign) == std::string::npos) continue;
    answer.trouble.found = concat(known.found, " (", last, ")");
    answer.trouble.advice = known.advice;
    return answer;
  }
  if (said.timed_out) {
    answer.trouble.found = concat("it does not answer: ", said.trouble);
    answer.trouble.advice = "see what ssh to it does, and its file systems";
  } else if (said.exit_code == 127 || said.exit_code == 126) {
    answer.trouble.found = concat("the program is not there (", last, ")");
    answer.trouble.advice = "install it at the same path on all hosts, or on a shared file system";
  } else {
    answer.trouble.found = concat("it does not tell: ", said.trouble);
    answer.trouble.advice = "try by hand: ssh to it, and tessera doctor there";
  }
  return answer;
}

std::vector<HostCheckup> check_hosts(const Machine& machine, const Program& program,
                                     const std::vector<HostSlots>& hosts,
                                     const CheckupOptions& options) {
  std::vector<std::string> variables;
  for (const char* prefix : {"OMPI_MCA_", "PMIX_MCA_"}) {
    for (std::string& one : machine.variables(prefix)) variables.push_back(std::move(one));
  }
  std::vector<std::future<HostCheckup>> running;
  for (const HostSlots& host : hosts) {
    running.push_back(std::async(std::launch::async, [&, host] {
      const bool here = is_this(machine, host.name);
      return judge_answer(host,
                          machine.ask(here ? host_words(program, options)
                                           : host_command(host.name, program, variables, options),
                                      kPatience));
    }));
  }
  std::vector<HostCheckup> answers;
  for (std::future<HostCheckup>& one : running) answers.push_back(one.get());
  return answers;
}

Findings compare_hosts(const std::vector<HostCheckup>& hosts, const Program& own) {
  Findings findings;
  for (const HostCheckup& one : hosts) {
    if (!one.checkup) findings.push_back(one.trouble);
  }
  if (findings.size() == hosts.size()) return findings;
  append(findings, compare_programs(hosts, own));
  append(findings, compare_names(hosts));
  append(findings, compare_slots(hosts));
  append(findings, compare_numbers(hosts));
  return findings;
}

Findings gathered(const std::vector<HostCheckup>& hosts) {
  struct Group {
    Finding finding;
    std::vector<std::string> names;
    bool alike = true;
  };
  std::vector<Group> groups;
  std::map<std::string, size_t> places;
  size_t answered = 0;
  for (const HostCheckup& one : hosts) {
    if (!one.checkup) continue;
    ++answered;
    std::map<std::string, int> seen;
    for (const Finding& finding : one.checkup->findings) {
      if (finding.subject == "program") continue;  // compare_hosts tells more
      const int place = finding.verdict == Verdict::kOk ? seen[finding.subject]++ : 0;
      const auto [at, added] = places.emplace(key_of(finding, place), groups.size());
      if (added) groups.push_back({.finding = finding, .names = {}});
      Group& group = groups[at->second];
      group.names.push_back(one.host.name);
      group.alike &= finding.found == group.finding.found;
    }
  }
  Findings findings;
  for (Group& group : groups) {
    if (!group.alike)
      group.finding.found += concat(" (on ", group.names.front(), "; like it on the others)");
    group.finding.hosts = group.names.size() == answered ? "all" : some_of(group.names);
    findings.push_back(std::move(group.finding));
  }
  // Hosts come one after the other, but what belongs together should stay together.
  std::map<std::string, size_t> order;
  for (const Finding& one : findings) order.emplace(one.subject, order.size());
  std::stable_sort(findings.begin(), findings.end(), [&](const Finding& a, const Finding& b) {
    return order[a.subject] < order[b.subject];
  });
  return findings;
}

namespace {

// A new file in the run directory, or in the nearest one above that is there; by another process,
// as file systems may hang. Its path, or nothing.
std::string make_marker(const Machine& machine, const std::string& directory,
                        const std::string& name) {
  const char* script =
      "d=$0; until [ -d \"$d\" ]; do d=$(dirname \"$d\"); done; touch \"$d/$1\" && echo \"$d/$1\"";
  return last_line_of(machine.ask({"sh", "-c", script, directory, name}, kShortPatience).output);
}

// The pairs of the hosts that have answered, with the same program.
Findings check_pairs(const Machine& machine, const std::vector<HostCheckup>& hosts,
                     const Program& own, const CheckupOptions& options) {
  WorldQuestion question{.program = own.path, .interface = options.interface, .root = options.root};
  double network = 0;
  for (const HostCheckup& one : hosts) {
    if (!one.checkup || one.checkup->program.digest != own.digest) continue;
    question.hosts.push_back(one.host.name);
    for (const auto& [name, value] : one.checkup->numbers) {
      if (name.starts_with("speed ")) network = std::max(network, value * 1e6 / 8);
    }
  }
  if (question.hosts.size() < 2) return {};
  return judge_pairs(machine.ask(world_command(question), world_patience(question)),
                     question.hosts.size(), network);
}

}  // namespace

Checkup check_all_hosts(const Machine& machine, const std::vector<HostSlots>& hosts,
                        CheckupOptions options) {
  Checkup checkup{.host = "", .program = this_program(machine)};
  options.run_directory = std::filesystem::absolute(options.run_directory).lexically_normal();
  options.marker = concat(".tessera-doctor-marker-", getpid());
  const std::string marker = make_marker(machine, options.run_directory, options.marker);
  if (marker.empty()) options.marker.clear();  // then it cannot be told whether it is shared
  const std::vector<HostCheckup> answers = check_hosts(machine, checkup.program, hosts, options);
  if (!marker.empty()) machine.ask({"rm", "-f", "--", marker}, kShortPatience);
  checkup.findings = compare_hosts(answers, checkup.program);
  append(checkup.findings, gathered(answers));
  append(checkup.findings, check_pairs(machine, answers, checkup.program, options));
  return checkup;
}

}  // namespace tessera
