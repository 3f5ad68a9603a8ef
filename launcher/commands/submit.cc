#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>

#include "kernels/core/log.h"
#include "launcher/arguments.h"
#include "launcher/commands/commands.h"
#include "launcher/commands/train.h"
#include "launcher/job.pb.h"
#include "launcher/job_config.h"
#include "launcher/job_script.h"
#include "launcher/sbatch.h"
#include "runtime/config/config.h"
#include "runtime/config/train.pb.h"

namespace tessera {

namespace {

namespace fs = std::filesystem;

using Values = boost::program_options::variables_map;

CommandLine command_line() {
  namespace options = boost::program_options;
  CommandLine line;
  line.name = "submit";
  line.usage = "CONFIG --job JOB [options]";
  line.about =
      "Gives a job to Slurm: checks CONFIG against the nodes of JOB, and hands a script to sbatch\n"
      "that trains, saves before the time limit, and goes on until the run is finished.";
  line.examples =
      "what would be submitted?\n"
      "  tessera submit configs/moe-100b-384gpu.textproto "
      "--job slurm/moe-100b-384gpu.textproto --dry-run\n"
      "would this cluster take it?\n"
      "  tessera submit configs/moe-100b-384gpu.textproto "
      "--job slurm/moe-100b-384gpu.textproto --test\n";
  line.options.add_options()  //
      ("config", options::value<std::string>()->value_name("FILE"),
       "text-format configuration (docs/configuration.md)")  //
      ("job", options::value<std::string>()->value_name("FILE"),
       "text-format job: nodes, time, partition (docs/slurm.md)")  //
      ("set", options::value<std::vector<std::string>>()->composing()->value_name("A.B=VALUE"),
       "set one field of the configuration; may be given many times")                       //
      ("steps", options::value<int64_t>()->value_name("N"), "short for --set steps=N")      //
      ("dry-run", options::bool_switch(), "check all, print the script, submit nothing")    //
      ("test", options::bool_switch(), "have sbatch check the script too, submit nothing")  //
      ("help", options::bool_switch(), "show this text");
  line.positional = {"config"};
  return line;
}

// The words behind `tessera train`.
std::vector<std::string> train_options(const Values& values) {
  std::vector<std::string> words{values["config"].as<std::string>()};
  if (values.count("set")) {
    for (const std::string& one : values["set"].as<std::vector<std::string>>()) {
      words.insert(words.end(), {"--set", one});
    }
  }
  if (values.count("steps")) {
    words.insert(words.end(), {"--steps", std::to_string(values["steps"].as<int64_t>())});
  }
  return words;
}

// What every rank would refuse, and what it would only be slow with.
void check_job(TrainConfig config, const JobConfig& job, const std::string& job_file) {
  const int64_t ranks = int64_t{job.nodes()} * job.tasks_per_node();
  const auto refuse = [&](const std::string& why) {
    throw Error(ExitCode::kUsage,
                concat(job_file, ": ", job.nodes(), " nodes x ", job.tasks_per_node(),
                       " tasks are ", ranks, " ranks, ", why));
  };
  constexpr int kMostRanks = 1 << 16;
  if (ranks > kMostRanks) refuse(concat("expected at most ", kMostRanks));
  try {
    resolve_mesh(config, static_cast<int>(ranks));
  } catch (const Error& error) {
    refuse(concat("which the configuration does not fit:\n", error.what()));
  }
  const bool on_gpus = config.runtime().device() == RuntimeConfig::GPU;
  if (on_gpus && job.gpus_per_node() == 0) {
    throw Error(ExitCode::kUsage,
                concat(job_file, ": gpus_per_node is 0, but runtime.device is GPU; set it to ",
                       job.tasks_per_node(), ", the tasks of a node"));
  }
  const auto warn = [&](const std::string& what) { log_line(concat("warning: ", what)); };
  if (!on_gpus && job.gpus_per_node() > 0) {
    warn(
        concat("gpus_per_node is ", job.gpus_per_node(), ", but runtime.device is CPU: they idle"));
  } else if (job.gpus_per_node() > job.tasks_per_node()) {
    warn(concat("gpus_per_node is ", job.gpus_per_node(),
                ", but only tasks_per_node = ", job.tasks_per_node(), " of them are used"));
  }
  if (job.tasks_per_node() % config.mesh().tensor() != 0) {
    warn(concat("mesh.tensor = ", config.mesh().tensor(), " does not divide tasks_per_node = ",
                job.tasks_per_node(), ": some tensor groups cross nodes, which is slow"));
  }
}

// sbatch opens neither: a job whose log cannot be written dies without a word.
void make_directory(const fs::path& directory) {
  std::error_code error;
  fs::create_directories(directory, error);
  if (!error && access(directory.c_str(), W_OK) == 0) return;
  throw Error(ExitCode::kUsage, concat("cannot write to ", directory.string(), ": ",
                                       error ? error.message() : "permission denied",
                                       "; the job needs it, choose another run_dir or log_dir"));
}

void write_file(const fs::path& file, const std::string& text) {
  std::ofstream out(file, std::ios::trunc);
  out << text;
  out.close();
  if (!out) throw Error(ExitCode::kError, concat("cannot write ", file.string()));
}

std::string test(const std::string& script) {
  const fs::path file = fs::temp_directory_path() / concat("tessera_submit_", getpid(), ".sh");
  write_file(file, script);
  const auto removed = std::shared_ptr<void>(nullptr, [&](void*) { fs::remove(file); });
  return run_sbatch({"--test-only", file.string()});
}

// Of two jobs that train one run each ends the other, again and again.
void check_not_queued(const fs::path& note, const fs::path& run_dir) {
  std::ifstream in(note);
  std::string jobs;
  in >> jobs;
  if (jobs.empty() || jobs.find_first_not_of("0123456789,") != std::string::npos) return;
  const std::string queued = queued_jobs(jobs);
  if (queued.empty()) return;
  throw Error(ExitCode::kUsage, concat(run_dir.string(), " is trained by job ", queued,
                                       " already; wait for its end, or end it with scancel"));
}

// The number of the job, which sbatch prints, with ";CLUSTER" behind it where there are several.
std::string submit(const std::vector<std::string>& options) {
  const std::string said = run_sbatch(options);
  return said.substr(0, said.find_first_not_of("0123456789"));
}

// The numbers of the jobs, the first one first. Of several, each is told which of how many it is,
// and the first one's number.
std::vector<std::string> submit_all(const JobConfig& job, const fs::path& script) {
  const int lives = job.go_on() == JobConfig::SINGLETON ? job.restarts() + 1 : 1;
  std::vector<std::string> jobs;
  for (int life = 1; life <= lives; ++life) {
    std::vector<std::string> words{"--parsable", script.string()};
    if (lives > 1) words.insert(words.end(), {std::to_string(life), std::to_string(lives)});
    if (life > 1) words.push_back(jobs.front());
    try {
      jobs.push_back(submit(words));
    } catch (const Error& error) {
      if (jobs.empty()) throw;
      log_line(
          concat("warning: only ", jobs.size(), " of ", lives, " jobs are queued: ", error.what()));
      break;
    }
  }
  return jobs;
}

// Everything that outlives a job is in RUN/slurm: its script, its number, what its lives leave.
void submit_run(const JobConfig& job, const JobRun& run) {
  const fs::path directory = run.run_dir / "slurm";
  const fs::path note = directory / "jobs";
  check_not_queued(note, run.run_dir);
  make_directory(directory);
  make_directory(job.log_dir());
  const fs::path script = directory / (job.name() + ".sh");
  write_file(script, job_script(job, run));
  const std::vector<std::string> jobs = submit_all(job, script);
  std::string list;
  for (const std::string& one : jobs) list += (list.empty() ? "" : ",") + one;
  write_file(note, list + "\n");
  std::cout << jobs.front() << "\n";
  log_line(concat("submitted job ", jobs.front(), " as ", job.name(),
                  jobs.size() > 1 ? concat(" and ", jobs.size() - 1, " that follow it") : "",
                  "; it prints to ", job.log_dir(), ", its script is ", script.string()));
}

}  // namespace

int run_submit(const std::vector<std::string>& arguments) {
  const CommandLine line = command_line();
  const auto values = parse_arguments(line, arguments);
  if (!values) return static_cast<int>(ExitCode::kFinished);
  if (values->count("job") == 0) misuse(line.name, "--job FILE is missing");
  const std::string job_file = (*values)["job"].as<std::string>();
  std::vector<std::string> options = train_options(*values);
  const std::unique_ptr<TrainConfig> config = config_of_train(options);
  JobConfig job = load_job_config(job_file);
  check_job(*config, job, job_file);
  options.front() = fs::absolute(options.front()).string();
  const JobRun run{.program = fs::read_symlink("/proc/self/exe"),
                   .train_options = options,
                   .directory = fs::current_path(),
                   .run_dir = fs::absolute(config->run_dir()).lexically_normal(),
                   .steps = config->steps(),
                   .root = geteuid() == 0};
  complete_job(job, run);
  if ((*values)["dry-run"].as<bool>()) {
    std::cout << job_script(job, run);
  } else if ((*values)["test"].as<bool>()) {
    std::cout << test(job_script(job, run));
  } else {
    submit_run(job, run);
  }
  return static_cast<int>(ExitCode::kFinished);
}

}  // namespace tessera
