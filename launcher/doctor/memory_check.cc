#include "kernels/core/error.h"
#include "launcher/doctor/checks.h"
#include "launcher/doctor/control_group.h"
#include "launcher/doctor/words.h"

namespace tessera {

namespace {

constexpr double kLeastMemory = 1e9;  // bytes, for anything at all
constexpr double kLeastShared = 1e9;  // bytes of /dev/shm; containers get 64 MB

// A line "MemTotal:  48000000 kB", in bytes.
std::optional<double> amount(const std::string& text, const char* name) {
  const auto number = number_in(value_of(text, name).value_or(""));
  if (!number) return {};
  return *number * 1024;
}

Finding judge_memory(const std::string& text, const GroupLimits& group) {
  const auto total = amount(text, "MemTotal");
  const auto available = amount(text, "MemAvailable");
  if (!total) return {Verdict::kOk, "memory", "/proc/meminfo cannot be read: not looked at"};
  std::string found =
      concat(bytes_text(*total), " in all, ", available ? bytes_text(*available) : "?", " free");
  double free = available.value_or(*total);
  if (group.memory && *group.memory < *total) {
    found += concat("; this control group may have ", bytes_text(*group.memory));
    if (group.used) found += concat(" and uses ", bytes_text(*group.used));
    free = std::min(free, *group.memory);
  }
  if (free < kLeastMemory) {
    return {Verdict::kWarn, "memory", found,
            "end what fills it, or ask for more (Slurm: --mem=0 is all of a node, containers: "
            "--memory)"};
  }
  return {Verdict::kOk, "memory", found};
}

Finding judge_shared(const std::optional<Space>& space) {
  if (!space || space->total == 0) {
    return {Verdict::kWarn, "shm", "there is no /dev/shm: ranks of one host cannot share memory",
            "mount -t tmpfs tmpfs /dev/shm"};
  }
  const auto total = static_cast<double>(space->total);
  const auto free = static_cast<double>(space->free);
  const std::string found =
      concat("/dev/shm has ", bytes_text(total), ", ", bytes_text(free), " free");
  if (total < kLeastShared) {
    return {
        Verdict::kWarn, "shm", concat(found, ": too little for MPI and NCCL of several ranks"),
        "in a container --shm-size=8g (or --ipc=host); else mount -o remount,size=50% /dev/shm"};
  }
  if (free < kLeastShared) {
    return {Verdict::kWarn, "shm", found,
            "remove what dead jobs have left there (vader_segment.*, nccl-*, psm_*, ucx_*)"};
  }
  return {Verdict::kOk, "shm", found};
}

}  // namespace

Findings check_memory(const Machine& machine) {
  const std::string text = machine.file("/proc/meminfo").value_or("");
  const GroupLimits group = group_limits(machine);
  Findings findings{judge_memory(text, group)};
  if (group.killed > 0) {
    findings.push_back({Verdict::kWarn, "memory",
                        concat("the kernel has ended ", group.killed, " processes of this control ",
                               "group because its memory was full"),
                        "give the job more memory, or look at `tessera train --dry-run`"});
  }
  const std::string overcommit =
      trimmed(machine.file("/proc/sys/vm/overcommit_memory").value_or(""));
  if (overcommit == "2") {
    findings.push_back({Verdict::kWarn, "memory",
                        "vm.overcommit_memory is 2: what is reserved counts as used, and CUDA and "
                        "MPI reserve much",
                        "sysctl vm.overcommit_memory=0"});
  }
  findings.push_back(judge_shared(machine.space("/dev/shm")));
  return findings;
}

}  // namespace tessera
