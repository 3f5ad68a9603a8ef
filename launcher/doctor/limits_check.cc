#include <array>
#include <limits>

#include "kernels/core/error.h"
#include "launcher/doctor/checks.h"
#include "launcher/doctor/words.h"

namespace tessera {

namespace {

constexpr double kUnlimited = std::numeric_limits<double>::infinity();

struct Rule {
  const char* name;    // in /proc/self/limits
  const char* option;  // of ulimit
  const char* wanted;  // by ulimit, in its units
  double least;        // below it there is trouble
  Verdict verdict;
  const char* trouble;
};

constexpr std::array kRules = std::to_array<Rule>({
    {"Max open files", "-n", "4096", 4096, Verdict::kWarn,
     "MPI opens a socket for each rank, shards are files"},
    {"Max processes", "-u", "4096", 4096, Verdict::kWarn, "ranks and their threads count"},
    {"Max stack size", "-s", "8192", 1 << 20, Verdict::kWarn, "threads may run out of it"},
    {"Max file size", "-f", "unlimited", 1e12, Verdict::kFail,
     "a checkpoint that is larger kills its rank"},
    {"Max cpu time", "-t", "unlimited", kUnlimited, Verdict::kWarn, "a rank is killed after it"},
    {"Max address space", "-v", "unlimited", kUnlimited, Verdict::kWarn,
     "CUDA and MPI reserve much more than they use"},
    {"Max data size", "-d", "unlimited", kUnlimited, Verdict::kWarn, "buffers may not fit"},
});

// The limit in force; nothing when it is not in the text.
std::optional<double> limit(const std::string& text, const char* name) {
  const auto value = value_of(text, name);
  if (!value) return {};
  return value->starts_with("unlimited") ? kUnlimited : number_in(*value);
}

std::string shown_limit(const std::optional<double>& value) {
  if (!value) return "not told";
  return *value == kUnlimited ? "unlimited" : digits_text(*value);
}

std::string shown_bytes(const std::optional<double>& value) {
  return value && *value != kUnlimited ? bytes_text(*value) : shown_limit(value);
}

bool has_infiniband(const Machine& machine) {
  return !machine.names("/sys/class/infiniband").empty();
}

}  // namespace

Findings check_limits(const Machine& machine) {
  const auto text = machine.file("/proc/self/limits");
  if (!text) return {{Verdict::kOk, "limits", "/proc/self/limits cannot be read: not looked at"}};
  Findings findings;
  for (const Rule& rule : kRules) {
    const auto value = limit(*text, rule.name);
    if (!value || *value >= rule.least) continue;
    findings.push_back({rule.verdict, "limits",
                        concat(rule.name + 4, " is ", shown_limit(value), ": ", rule.trouble),
                        concat("ulimit ", rule.option, " ", rule.wanted,
                               ", or a line in /etc/security/limits.conf; Slurm takes over the "
                               "limits of the shell that submits")});
  }
  const auto locked = limit(*text, "Max locked memory");
  if (locked && *locked < kUnlimited && has_infiniband(machine)) {
    findings.push_back({Verdict::kFail, "limits",
                        concat("locked memory is ", bytes_text(*locked),
                               ": InfiniBand cannot register its buffers"),
                        "ulimit -l unlimited, or `* - memlock unlimited` in "
                        "/etc/security/limits.conf, and LimitMEMLOCK=infinity for slurmd"});
  }
  if (!findings.empty()) return findings;
  const auto core = limit(*text, "Max core file size");
  return {{Verdict::kOk, "limits",
           concat("locked memory ", shown_bytes(locked), ", open files ",
                  shown_limit(limit(*text, "Max open files")), ", processes ",
                  shown_limit(limit(*text, "Max processes")), ", stack ",
                  shown_bytes(limit(*text, "Max stack size")), ", core files ",
                  core == 0.0 ? "off" : shown_bytes(core))}};
}

}  // namespace tessera
