#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <thread>

#include "checkpoint/candidates.h"
#include "kernels/core/log.h"
#include "launcher/arguments.h"
#include "launcher/commands/commands.h"
#include "launcher/commands/train.h"
#include "launcher/mpirun.h"
#include "launcher/supervisor.h"
#include "runtime/config/config.h"
#include "runtime/config/train.pb.h"

namespace tessera {

namespace {

constexpr int kMostRanks = 1 << 16;
constexpr int kMostRetries = 1'000'000;

CommandLine command_line() {
  namespace options = boost::program_options;
  CommandLine line;
  line.name = "launch";
  line.usage = "[options] -- train CONFIG [options of train]";
  line.about =
      "Runs a job under mpirun and watches over it: when it ends unfinished, it is started again\n"
      "and goes on from its newest checkpoint. SIGINT, SIGTERM and SIGUSR1 stop it after a step,\n"
      "with the state saved and exit code 75. 93: several starts in a row made no progress.";
  line.examples =
      "8 ranks on this host\n"
      "  tessera launch --ranks 8 -- train configs/quickstart.textproto\n"
      "two hosts, which are reached by ssh and share the run directory\n"
      "  tessera launch --hosts a:8,b:8 -- train configs/quickstart.textproto\n";
  line.options.add_options()  //
      ("ranks", options::value<int>()->value_name("N"),
       "default: all slots of --hosts, else the ranks of the configuration's mesh")  //
      ("hosts", options::value<std::string>()->value_name("A:8,B:8"),
       "hosts and how many ranks each takes, filled in this order; default: this one")  //
      ("retries", options::value<int>()->default_value(RestartPolicy{}.retries)->value_name("K"),
       "restarts in all")                                                        //
      ("no-binding", options::bool_switch(), "do not bind ranks to cores")       //
      ("print", options::bool_switch(), "print the command, and start nothing")  //
      ("help", options::bool_switch(), "show this text");
  return line;
}

int number(const boost::program_options::variables_map& values, const char* name, int least,
           int most) {
  const int value = values[name].as<int>();
  if (value < least || value > most) {
    misuse("launch", concat("--", name, " is ", value, ", expected ", least, " to ", most));
  }
  return value;
}

int slots_of(const std::vector<HostSlots>& hosts) {
  int slots = 0;
  for (const HostSlots& host : hosts) slots += host.slots;
  return slots;
}

CheckpointId newest_of(const std::filesystem::path& run_directory) {
  for (const Candidate& one : list_checkpoints(checkpoints_directory(run_directory))) {
    if (one.state == CandidateState::kValid) return one.id;
  }
  return {};
}

// What would make every rank refuse: told before any is started.
void check_ranks(TrainConfig config, const MpirunOptions& options) {
  resolve_mesh(config, options.ranks);
  const int slots = slots_of(options.hosts);
  if (!options.hosts.empty() && options.ranks > slots) {
    misuse("launch", concat("--ranks is ", options.ranks, ", but --hosts have ", slots, " slots"));
  }
  const int tensor = config.mesh().tensor();
  for (const HostSlots& host : options.hosts) {
    if (host.slots % tensor == 0) continue;
    log_line(concat("warning: mesh.tensor = ", tensor, " does not divide the ", host.slots,
                    " slots of ", host.name, ": some tensor groups cross hosts, which is slow"));
  }
}

}  // namespace

int run_launch(const std::vector<std::string>& arguments) {
  const CommandLine line = command_line();
  const auto bar = std::find(arguments.begin(), arguments.end(), "--");
  const auto values = parse_arguments(line, {arguments.begin(), bar});
  if (!values) return static_cast<int>(ExitCode::kFinished);
  if (bar == arguments.end() || bar + 1 == arguments.end() || *(bar + 1) != "train") {
    misuse(line.name, "expected -- train CONFIG behind the options");
  }
  const std::vector<std::string> train_arguments(bar + 2, arguments.end());
  const std::unique_ptr<TrainConfig> config = config_of_train(train_arguments);
  if (!config) misuse(line.name, "train is asked for help only");

  MpirunOptions options;
  if (values->count("hosts")) options.hosts = parse_hosts((*values)["hosts"].as<std::string>());
  options.ranks = values->count("ranks")   ? number(*values, "ranks", 1, kMostRanks)
                  : !options.hosts.empty() ? slots_of(options.hosts)
                                           : described_ranks(*config);
  options.cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  options.bind = !(*values)["no-binding"].as<bool>();
  options.root = geteuid() == 0;
  check_ranks(*config, options);

  std::vector<std::string> program{std::filesystem::read_symlink("/proc/self/exe").string()};
  program.insert(program.end(), bar + 1, arguments.end());
  const std::vector<std::string> command = mpirun_command(options, program);
  if ((*values)["print"].as<bool>()) {
    for (const std::string& word : command)
      std::cout << word << (&word == &command.back() ? "\n" : " ");
    return static_cast<int>(ExitCode::kFinished);
  }
  RestartPolicy policy;
  policy.retries = number(*values, "retries", 0, kMostRetries);
  ChildRunner runner;
  const std::filesystem::path run_directory = config->run_dir();
  return supervise({.run = [&] { return runner.run(command); },
                    .newest = [&] { return newest_of(run_directory); },
                    .wait = [&](double seconds) { return runner.wait(seconds); }},
                   policy);
}

}  // namespace tessera
