#include "launcher/job_script.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <string_view>

#include "kernels/core/error.h"
#include "launcher/job.pb.h"
#include "launcher/job_config.h"
#include "launcher/job_templates.h"
#include "launcher/shell.h"
#include "runtime/config/wording.h"

namespace tessera {

namespace {

constexpr int kLivesWithoutProgress = 3;  // as in RestartPolicy
constexpr int kSecondsToAnswer = 60;      // of a node that is asked whether it lives

// sbatch reads its lines with rules of its own for blanks, quotes, # and %.
void check_path(const char* what, const std::string& path) {
  const auto plain = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 ||
           std::string_view("/._+,:@=-").find(c) != std::string_view::npos;
  };
  if (std::all_of(path.begin(), path.end(), plain)) return;
  throw Error(ExitCode::kUsage,
              concat(what, " is ", in_quotes(path), ", expected letters, digits and / . _ + , : @ ",
                     "= - only, because sbatch gives others a meaning"));
}

std::string log_pattern(const JobConfig& job) {
  // %x is the name, %j the number of the job, %A and %a those of an array and its task.
  return job.log_dir() + (job.go_on() == JobConfig::ARRAY ? "/%x-%A_%a.out" : "/%x-%j.out");
}

std::vector<std::string> asked_of_slurm(const JobConfig& job, const JobRun& run) {
  std::vector<std::string> options{
      concat("--job-name=", job.name()), concat("--nodes=", job.nodes() + job.spare_nodes()),
      concat("--ntasks-per-node=", job.tasks_per_node()), concat("--time=", job.time())};
  const auto add = [&](bool wanted, const std::string& option) {
    if (wanted) options.push_back(option);
  };
  const std::string type = job.has_gpu_type() ? job.gpu_type() + ":" : "";
  add(job.gpus_per_node() > 0, concat("--gpus-per-node=", type, job.gpus_per_node()));
  add(job.cpus_per_task() > 0, concat("--cpus-per-task=", job.cpus_per_task()));
  add(job.has_memory_per_node(), "--mem=" + job.memory_per_node());
  add(job.has_partition(), "--partition=" + job.partition());
  add(job.has_account(), "--account=" + job.account());
  add(job.has_qos(), "--qos=" + job.qos());
  add(job.has_constraint(), "--constraint=" + job.constraint());
  add(job.exclusive(), "--exclusive");
  // With mpirun to the shell alone: by way of mpirun's daemons ranks would get it twice, and leave.
  add(true,
      concat("--signal=", job.starter() == JobConfig::MPIRUN ? "B:" : "", "USR1@", job.warning()));
  add(true, job.go_on() == JobConfig::REQUEUE ? "--requeue" : "--no-requeue");
  add(job.go_on() == JobConfig::ARRAY, concat("--array=1-", job.restarts() + 1, "%1"));
  add(job.go_on() == JobConfig::SINGLETON, "--dependency=singleton");
  add(job.spare_nodes() > 0, "--no-kill");
  add(true, "--chdir=" + run.directory.string());
  add(true, "--open-mode=append");
  add(true, "--output=" + log_pattern(job));
  options.insert(options.end(), job.sbatch().begin(), job.sbatch().end());
  return options;
}

std::vector<std::string> starter_options(const JobConfig& job, const JobRun& run) {
  const int cores = job.cpus_per_task();
  std::vector<std::string> words;
  if (job.starter() == JobConfig::SRUN) {
    // srun does not take --cpus-per-task over from sbatch.
    if (cores > 0) words = {concat("--cpus-per-task=", cores), "--cpu-bind=cores"};
    // A rank that sees its own GPU only cannot reach its neighbours' by NVLink.
    if (job.gpus_per_node() > 0) words.emplace_back("--gpu-bind=none");
    // For Slurm, the step of a life is there until the last of its nodes has answered, lost or not.
    if (job.spare_nodes() > 0) words.emplace_back("--overlap");
  } else {
    words = {"--map-by",
             concat("ppr:", job.tasks_per_node(), ":node",
                    cores > 0 ? concat(":PE=", cores) : std::string()),
             "--bind-to", cores > 0 ? "core" : "none"};
    if (run.root) words.emplace_back("--allow-run-as-root");
  }
  words.insert(words.end(), job.starter_options().begin(), job.starter_options().end());
  return words;
}

std::string settings(const JobConfig& job, const JobRun& run) {
  std::string text;
  const auto line = [&](const std::string& one) { text += one + "\n"; };
  const auto export_line = [&](const std::string& name, const std::string& value) {
    line(concat("export ", name, "=", shell_word(value)));
  };
  std::vector<std::string> tessera(job.container().begin(), job.container().end());
  tessera.push_back(run.program.string());
  line(concat("name=", shell_word(job.name())));
  line(concat("run_dir=", shell_word(run.run_dir.string())));
  line(shell_array("tessera", tessera));
  line(shell_array("train_options", run.train_options));
  line(shell_array("starter_options", starter_options(job, run)));
  line(concat("nodes=", job.nodes(), " ranks=", job.nodes() * job.tasks_per_node()));
  line(concat("lives_without_progress=", kLivesWithoutProgress, " steps=", run.steps));
  const bool spares = job.spare_nodes() > 0;
  if (job.starter() == JobConfig::SRUN) line(concat("tasks_per_node=", job.tasks_per_node()));
  if (job.go_on() == JobConfig::REQUEUE) line(concat("most_restarts=", job.restarts()));
  if (job.go_on() == JobConfig::REQUEUE || spares) {
    line(concat("limit=", seconds_of(job.time()), " # seconds"));
  }
  if (spares) line(concat("warning=", job.warning(), " seconds_to_answer=", kSecondsToAnswer));
  if (job.has_network()) {
    for (const char* name :
         {"OMPI_MCA_btl_tcp_if_include", "OMPI_MCA_oob_tcp_if_include", "NCCL_SOCKET_IFNAME"}) {
      export_line(name, job.network());
    }
  }
  for (const std::string& one : job.environment()) {
    const size_t equals = one.find('=');
    export_line(one.substr(0, equals), one.substr(equals + 1));
  }
  text.pop_back();
  return text;
}

std::string_view without_last_newline(std::string_view text) {
  return text.substr(0, text.find_last_not_of('\n') + 1);
}

std::string directives(const JobConfig& job, const JobRun& run) {
  std::string text;
  for (const std::string& option : asked_of_slurm(job, run)) text += "#SBATCH " + option + "\n";
  text.pop_back();
  return text;
}

// A place is @name@ alone on its line; what fills it is not searched for places again.
std::string filled(std::string_view text, const std::map<std::string_view, std::string>& places) {
  std::string out;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    const bool place = line.size() > 2 && line.front() == '@' && line.back() == '@';
    if (!place) {
      out.append(line).append("\n");
      continue;
    }
    const auto content = places.find(line.substr(1, line.size() - 2));
    CHECK(content != places.end(), "slurm/job.sh has the place ", line, ", which nothing fills");
    if (!content->second.empty()) out.append(content->second).append("\n");
  }
  return out;
}

}  // namespace

void complete_job(JobConfig& job, const JobRun& run) {
  if (!job.has_name()) {
    std::string name = run.run_dir.filename().string();
    const auto odd = [](char c) {
      return std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '.' && c != '_' && c != '-';
    };
    std::replace_if(name.begin(), name.end(), odd, '_');
    job.set_name(name.empty() ? "tessera" : name);
  }
  const std::filesystem::path logs =
      job.has_log_dir() ? std::filesystem::path(job.log_dir()) : run.run_dir / "slurm";
  job.set_log_dir((run.directory / logs).lexically_normal().string());
  check_path("log_dir", job.log_dir());
  check_path("the current directory", run.directory.string());
}

std::string job_script(const JobConfig& job, const JobRun& run) {
  const JobTemplates& texts = job_templates();
  const std::map<JobConfig::GoOn, std::string_view> go_on{
      {JobConfig::REQUEUE, texts.go_on_requeue},
      {JobConfig::ARRAY, texts.go_on_array},
      {JobConfig::SINGLETON, texts.go_on_singleton}};
  const bool mpirun = job.starter() == JobConfig::MPIRUN;
  const auto text = [](std::string_view part) { return std::string(without_last_newline(part)); };
  return filled(
      texts.job,
      {{"directives", directives(job, run)},
       {"settings", settings(job, run)},
       {"start", text(mpirun ? texts.start_mpirun : texts.start_srun)},
       {"go_on", text(go_on.at(job.go_on()))},
       {"lives", text(job.spare_nodes() > 0 ? texts.lives_with_spares : texts.one_life)}});
}

}  // namespace tessera
