#include <algorithm>

#include "kernels/core/error.h"
#include "launcher/doctor/checks.h"
#include "launcher/doctor/words.h"

namespace tessera {

namespace {

constexpr double kPatience = 3;        // seconds for a command; a lost controller keeps it waiting
constexpr double kLateNodeLoss = 120;  // seconds

bool speaks_pmix(const std::string& type) {
  return type.starts_with("pmix");
}

// "MPI plugin types are...\n\tnone\n\tpmix\nspecific pmix plugin versions available: pmix_v4", and
// older ones put "srun: " in front of every line.
std::vector<std::string> mpi_types(const CapturedCommand& said) {
  std::vector<std::string> types;
  for (const std::string& line : lines_in(said.output + "\n" + said.errors)) {
    std::string rest = line.starts_with("srun: ") ? line.substr(6) : line;
    if (rest.find("error") != std::string::npos || rest.find("fatal") != std::string::npos)
      continue;
    if (rest.find("types are") != std::string::npos) continue;
    const size_t colon = rest.find(':');
    if (colon != std::string::npos) rest = rest.substr(colon + 1);
    for (std::string& word : words_of(rest, " \t,")) {
      if (std::find(types.begin(), types.end(), word) == types.end()) types.push_back(word);
    }
  }
  return types;
}

Finding judge_types(const std::string& head, const std::vector<std::string>& types,
                    const std::string& usual) {
  const std::string found = concat(head, ", MPI types ", types.empty() ? "none" : listed(types),
                                   ", default ", usual.empty() ? "not told" : usual);
  if (std::none_of(types.begin(), types.end(), speaks_pmix)) {
    return {Verdict::kWarn, "slurm", found,
            "srun cannot start ranks of Open MPI without pmix: start them with mpirun in the job, "
            "or ask the administrator for Slurm's PMIx plugin"};
  }
  if (!speaks_pmix(usual)) {
    return {
        Verdict::kWarn, "slurm", found,
        "always start ranks with srun --mpi=pmix, or ask the administrator for MpiDefault=pmix"};
  }
  return {Verdict::kOk, "slurm", found};
}

// What makes jobs slow to come back.
Findings judge_settings(const std::string& settings) {
  Findings findings;
  const double late = number_in(value_of(settings, "SlurmdTimeout").value_or("")).value_or(0);
  if (late > kLateNodeLoss) {
    findings.push_back({Verdict::kWarn, "slurm",
                        concat("SlurmdTimeout is ", late, " s: so long a dead node goes unseen"),
                        "ask the administrator for SlurmdTimeout=60"});
  }
  if (number_in(value_of(settings, "JobRequeue").value_or("")) == 0.0) {
    findings.push_back({Verdict::kWarn, "slurm",
                        "JobRequeue is 0: jobs do not come back by themselves",
                        "submit with --requeue, or ask the administrator for JobRequeue=1"});
  }
  return findings;
}

}  // namespace

Findings check_slurm(const Machine& machine) {
  const CapturedCommand control = machine.ask({"scontrol", "show", "config"}, kPatience);
  if (control.exit_code == 127)
    return {{Verdict::kOk, "slurm", "not installed; mpirun starts jobs"}};
  const std::string own = machine.variable("SLURM_CONF");
  if (!control.ok()) {
    return {{Verdict::kWarn, "slurm", concat("installed, but finds no cluster: ", control.trouble),
             own.empty() ? "if there is one, set SLURM_CONF to its slurm.conf; mpirun works without"
                         : concat("is SLURM_CONF=", own,
                                  " right, and does slurmctld run? mpirun works without")}};
  }
  const std::string& settings = control.output;
  const std::string head = concat("Slurm ", value_of(settings, "SLURM_VERSION").value_or("?"),
                                  ", cluster ", value_of(settings, "ClusterName").value_or("?"));
  const CapturedCommand list = machine.ask({"srun", "--mpi=list"}, kPatience);
  Findings findings{
      judge_types(head, mpi_types(list), value_of(settings, "MpiDefault").value_or(""))};
  append(findings, judge_settings(settings));
  if (settings.find(" is DOWN") != std::string::npos) {
    findings.push_back({Verdict::kWarn, "slurm", last_line_of(settings),
                        "no job starts before the administrator has started slurmctld again"});
  }
  return findings;
}

}  // namespace tessera
