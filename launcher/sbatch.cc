#include "launcher/sbatch.h"

#include <algorithm>
#include <array>
#include <sstream>
#include <string_view>

#include "kernels/core/error.h"
#include "launcher/captured_command.h"

namespace tessera {

namespace {

constexpr double kPatience = 120;  // seconds; Slurm's own is 10 for a message

struct Advice {
  std::string_view reason;  // part of it
  const char* advice;
  bool temporary = false;
};

constexpr std::array kAdvice = std::to_array<Advice>({
    {"Unable to contact slurm controller", "ask again later; scontrol ping says whether it is up",
     true},
    {"Socket timed out", "ask again later; scontrol ping says whether the controller is up", true},
    {"Unable to resolve", "is this a login node of the cluster? slurm.conf names its controller",
     true},
    {"configuration source",
     "is this a login node of the cluster? SLURM_CONF names its slurm.conf"},
    {"Invalid partition", "set partition to one that sinfo --summarize lists"},
    {"Invalid account",
     "set account and partition to a pair that sacctmgr show associations lists"},
    {"Invalid qos", "set qos to one that sacctmgr show qos lists"},
    {"Invalid feature", "set constraint to features that sinfo --format=%f lists"},
    {"Invalid generic resource", "set gpus_per_node and gpu_type to what sinfo --format=%G lists"},
    {"time limit is invalid",
     "lower time to the partition's limit, which sinfo --format=%P,%l shows"},
    {"Time limit", "lower time to the partition's limit, which sinfo --format=%P,%l shows"},
    {"Node count specification invalid", "lower nodes and spare_nodes; sinfo lists the nodes"},
    {"More processors requested", "lower nodes, tasks_per_node or cpus_per_task"},
    {"Memory specification", "lower memory_per_node; sinfo --format=%m shows what nodes have"},
    {"node configuration is not available",
     "lower nodes, tasks_per_node, cpus_per_task, memory_per_node or gpus_per_node; "
     "sinfo --Node --long shows what nodes have"},
    {"Invalid job array",
     "take go_on: SINGLETON, or fewer restarts: MaxArraySize of scontrol show "
     "config is above their number"},
});

const Advice* advice_for(const std::string& reason) {
  const auto found = std::find_if(kAdvice.begin(), kAdvice.end(), [&](const Advice& one) {
    return reason.find(one.reason) != std::string::npos;
  });
  return found == kAdvice.end() ? nullptr : &*found;
}

}  // namespace

std::string sbatch_reason(const std::string& said) {
  std::string reason;
  std::istringstream lines(said);
  for (std::string line; std::getline(lines, line);) {
    for (const std::string_view prefix : {"sbatch: ", "error: ", "fatal: ", "allocation failure: ",
                                          "Batch job submission failed: "}) {
      if (line.starts_with(prefix)) line.erase(0, prefix.size());
    }
    if (line.empty() || reason.find(line) != std::string::npos) continue;
    reason += (reason.empty() ? "" : "; ") + line;
  }
  return reason.empty() ? "it does not say why" : reason;
}

std::string way_out(const std::string& reason) {
  const Advice* advice = advice_for(reason);
  return advice != nullptr ? advice->advice
                           : "mend the job file; --dry-run prints the script, and "
                             "--test tries it";
}

std::string run_sbatch(const std::vector<std::string>& options) {
  std::vector<std::string> command{"sbatch"};
  command.insert(command.end(), options.begin(), options.end());
  const CapturedCommand end = capture_command(command, {.seconds = kPatience});
  if (end.ok()) return end.output + end.errors;
  if (end.exit_code == 127) {
    throw Error(ExitCode::kUsage,
                concat(end.trouble,
                       " Submit where the cluster is used from, with Slurm in PATH, or "
                       "print the script with --dry-run"));
  }
  if (end.timed_out) throw Error(ExitCode::kTryAgain, concat(end.trouble, "; ask again later"));
  const std::string reason = sbatch_reason(end.errors);
  const Advice* advice = advice_for(reason);
  const bool temporary = advice != nullptr && advice->temporary;
  throw Error(temporary ? ExitCode::kTryAgain : ExitCode::kUsage,
              concat("sbatch refuses the job: ", reason, "; ", way_out(reason)));
}

std::string queued_jobs(const std::string& jobs) {
  const CapturedCommand end = capture_command(
      {"squeue", "--noheader", "--format=%i (%T)", "--jobs=" + jobs}, {.seconds = kPatience});
  if (!end.ok()) return "";
  std::string list = end.output.substr(0, end.output.find_last_not_of('\n') + 1);
  for (size_t at = 0; (at = list.find('\n', at)) != std::string::npos;) list.replace(at, 1, ", ");
  return list;
}

}  // namespace tessera
