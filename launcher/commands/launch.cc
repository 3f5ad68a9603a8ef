#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <optional>
#include <random>
#include <sstream>
#include <utility>

#include "checkpoint/candidates.h"
#include "kernels/core/error.h"
#include "kernels/core/log.h"
#include "launcher/arguments.h"
#include "launcher/commands/commands.h"
#include "launcher/commands/train.h"
#include "launcher/job_hosts.h"
#include "launcher/left_over_ranks.h"
#include "launcher/mpirun.h"
#include "launcher/placement.h"
#include "launcher/rank_probe.h"
#include "launcher/shell.h"
#include "launcher/ssh.h"
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
      "with the state saved and exit code 75. 93: several starts in a row made no progress.\n"
      "Hosts are checked before every start (docs/launch.md).";
  line.examples =
      "8 ranks on this host\n"
      "  tessera launch --ranks 8 -- train configs/quickstart.textproto\n"
      "two hosts, which are reached by ssh and share the run directory\n"
      "  tessera launch --hosts a:8,b:8 -- train configs/quickstart.textproto\n"
      "four, over one network; when a host is lost, three go on\n"
      "  tessera launch --hosts a:8,b:8,c:8,d:8 --interface eth1 --min-hosts 3 -- \\\n"
      "    train configs/quickstart.textproto\n";
  line.options.add_options()  //
      ("ranks", options::value<int>()->value_name("N"),
       "default: all slots of --hosts, else the ranks of the configuration's mesh")  //
      ("hosts", options::value<std::string>()->value_name("A:8,B:8"),
       "hosts and how many ranks each takes, filled in this order; default: this one")  //
      ("min-hosts", options::value<int>()->value_name("N"),
       "when hosts are lost, go on with at least so many, fewer ranks and the best mesh for them; "
       "default: all")  //
      ("interface", options::value<std::string>()->value_name("NIC"),
       "network interface that ranks on different hosts use, as eth1")  //
      ("retries", options::value<int>()->default_value(RestartPolicy{}.retries)->value_name("K"),
       "restarts in all")                                                        //
      ("no-binding", options::bool_switch(), "do not bind ranks to cores")       //
      ("print", options::bool_switch(), "print the command, and start nothing")  //
      ("help", options::bool_switch(), "show this text");
  return line;
}

using Values = boost::program_options::variables_map;

int number(const Values& values, const char* name, int least, int most) {
  const int value = values[name].as<int>();
  if (value < least || value > most) {
    misuse("launch", concat("--", name, " is ", value, ", expected ", least, " to ", most));
  }
  return value;
}

CheckpointId newest_of(const std::filesystem::path& run_directory) {
  for (const Candidate& one : list_checkpoints(checkpoints_directory(run_directory))) {
    if (one.state == CandidateState::kValid) return one.id;
  }
  return {};
}

/// What was asked for, and is possible as far as this host can tell.
struct Launch {
  MpirunOptions mpirun;
  int least_hosts = 0;
  RestartPolicy policy;
  std::string program;             ///< path of this one
  std::vector<std::string> train;  ///< arguments of train
};

// What would make every rank refuse: told before any is started.
void check(const MpirunOptions& options, TrainConfig config) {
  resolve_mesh(config, options.ranks);
  const int slots = slots_of(options.hosts);
  if (!options.hosts.empty() && options.ranks > slots) {
    misuse("launch", concat("--ranks is ", options.ranks, ", but --hosts have ", slots, " slots"));
  }
}

Launch read_launch(const Values& values, const TrainConfig& config,
                   std::vector<std::string> train_arguments) {
  Launch launch{.mpirun = {}, .policy = {}, .program = {}, .train = std::move(train_arguments)};
  launch.program = std::filesystem::read_symlink("/proc/self/exe").string();
  launch.policy.retries = number(values, "retries", 0, kMostRetries);
  MpirunOptions& options = launch.mpirun;
  if (values.count("hosts")) options.hosts = parse_hosts(values["hosts"].as<std::string>());
  for (const char* name : {"min-hosts", "interface"}) {
    if (values.count(name) && options.hosts.empty()) {
      misuse("launch", concat("--", name, " is about several hosts, but --hosts is missing"));
    }
  }
  options.ranks = values.count("ranks")    ? number(values, "ranks", 1, kMostRanks)
                  : !options.hosts.empty() ? slots_of(options.hosts)
                                           : described_ranks(config);
  const int hosts = static_cast<int>(options.hosts.size());
  launch.least_hosts = values.count("min-hosts") ? number(values, "min-hosts", 1, hosts) : hosts;
  if (values.count("interface")) options.interface = values["interface"].as<std::string>();
  options.cpus = cpu_topology();
  options.bind = !values["no-binding"].as<bool>();
  options.root = geteuid() == 0;
  check(options, config);
  return launch;
}

// Variables that ranks on other hosts get, too: those of the libraries, and the name of the launch.
std::vector<std::string> passed_environment(const std::string& launch,
                                            const std::string& interface) {
  std::vector<std::string> names{concat(kLaunchVariable, "=", launch)};
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string text = *variable;
    const std::string name = text.substr(0, text.find('='));
    const bool wanted = name.starts_with("TESSERA_") || name.starts_with("NCCL_") ||
                        name.starts_with("UCX_") || name.starts_with("CUDA_") ||
                        name == "LD_LIBRARY_PATH";
    const bool ours =
        name == kLaunchVariable || (name == "NCCL_SOCKET_IFNAME" && !interface.empty());
    if (wanted && !ours) names.push_back(name);
  }
  return names;
}

std::vector<std::string> command_of(const Launch& launch, const std::optional<MeshShape>& mesh) {
  std::vector<std::string> words{launch.program, "train"};
  words.insert(words.end(), launch.train.begin(), launch.train.end());
  if (mesh) {
    const std::vector<std::string> more = mesh_overrides(*mesh);
    words.insert(words.end(), more.begin(), more.end());
  }
  return mpirun_command(launch.mpirun, words);
}

// The file that every host has to see, while they are asked.
class Marker {
 public:
  Marker(const std::filesystem::path& run_directory, const std::string& name)
      : file_(run_directory / name) {
    std::error_code error;
    std::filesystem::create_directories(run_directory, error);
    std::ofstream out(file_);
    if (!out) {
      throw Error(ExitCode::kUsage,
                  concat("cannot write ", file_.string(), "; check that run_dir is writable"));
    }
  }
  ~Marker() {
    std::error_code error;
    std::filesystem::remove(file_, error);
  }
  Marker(const Marker&) = delete;
  Marker& operator=(const Marker&) = delete;

 private:
  std::filesystem::path file_;
};

std::string new_name() {
  std::random_device random;
  std::ostringstream name;
  name << std::hex << random() << random();
  return name.str();
}

int launch_here(const Launch& launch, const TrainConfig& config) {
  ChildRunner runner;
  const std::vector<std::string> command = command_of(launch, {});
  return supervise({.run = [&] { return runner.run(command); },
                    .newest = [&] { return newest_of(config.run_dir()); },
                    .wait = [&](double seconds) { return runner.wait(seconds); }},
                   launch.policy);
}

/// The lives of a job on several hosts.
class HostLaunch {
 public:
  HostLaunch(const Launch& launch, const TrainConfig& config)
      : launch_(launch),
        config_(config),
        question_{.launch = new_name(), .marker = {}, .train = launch.train},
        expected_{.own = {},
                  .program = launch.program,
                  .directory = std::filesystem::current_path().string(),
                  .run_directory = config.run_dir(),
                  .data = config.data().path(),
                  .interface = launch.mpirun.interface},
        hosts_(
            config, launch.mpirun.hosts,
            {.ranks = launch.mpirun.ranks, .least_hosts = launch.least_hosts},
            [this](const std::vector<HostSlots>& hosts) { return ask(hosts); },
            [this](double seconds) { return runner_.wait(seconds); }) {
    launch_.mpirun.environment = passed_environment(question_.launch, launch.mpirun.interface);
  }

  /// The exit code. Throws when the job cannot start at all.
  int run() {
    life_ = hosts_.first();
    const std::string trouble = prepare(*life_);
    if (!trouble.empty()) throw Error(ExitCode::kUsage, trouble);
    bool first = true;
    return supervise({.run = [&] { return std::exchange(first, false) ? live() : live_again(); },
                      .newest = [this] { return newest_of(config_.run_dir()); },
                      .wait = [this](double seconds) { return runner_.wait(seconds); }},
                     launch_.policy);
  }

 private:
  std::vector<HostAnswer> ask(const std::vector<HostSlots>& hosts) {
    question_.marker = concat(".launch-", new_name());
    const Marker marker(config_.run_dir(), question_.marker);
    expected_.own.clear();
    tell_host_facts(question_, [this](const std::string& name, const std::string& value) {
      expected_.own[name] = value;
    });
    return ask_hosts(hosts, question_, expected_);
  }

  // Returns why it cannot start, or nothing.
  std::string prepare(const LifePlan& life) {
    MpirunOptions& options = launch_.mpirun;
    options.ranks = life.ranks;
    options.hosts = life.hosts;
    options.cpus = common_cpus(life.facts);
    if (!options.interface.empty()) {
      options.network = common_network(life.facts, expected_.own, options.interface);
    }
    const std::string trouble = probe_ranks(options, launch_.program);
    if (trouble.empty()) return "";
    const std::string common = common_interfaces(life.facts);
    return concat("the job cannot start on ", to_text(options.hosts), ": ", trouble,
                  "; expected every rank to reach every other one; name the network between hosts ",
                  "with --interface", common.empty() ? "" : ": " + common);
  }

  // A life that ends badly may have lost a host: they are asked at once, and so the log names it.
  ChildEnd live() {
    const ChildEnd end = runner_.run(command_of(launch_, life_->mesh));
    life_.reset();
    if (!end.stopped && end.may_go_on()) {
      log_line(concat("mpirun ended with exit code ", end.exit_code, "; asking the hosts"));
      life_ = hosts_.next();
    }
    return end;
  }

  ChildEnd live_again() {
    if (!life_) life_ = hosts_.next();
    std::string trouble = life_ ? prepare(*life_) : "";
    if (!trouble.empty()) {
      log_line(trouble);
      life_.reset();
    }
    const bool go_on = runner_.wait(0.01);  // hears what was asked meanwhile
    if (go_on && life_) return live();
    return {
        .exit_code = static_cast<int>(ExitCode::kTryAgain), .stopped = !go_on, .started = false};
  }

  ChildRunner runner_;  // before anything that starts threads
  Launch launch_;
  const TrainConfig& config_;
  HostQuestion question_;
  HostExpectation expected_;
  JobHosts hosts_;
  std::optional<LifePlan> life_;  ///< the next one, when it is known
};

}  // namespace

int run_launch(const std::vector<std::string>& arguments) {
  const CommandLine line = command_line();
  const auto bar = std::find(arguments.begin(), arguments.end(), "--");
  const auto values = parse_arguments(line, {arguments.begin(), bar});
  if (!values) return static_cast<int>(ExitCode::kFinished);
  if (arguments.end() - bar < 2 || *(bar + 1) != "train") {
    misuse(line.name, "expected -- train CONFIG behind the options");
  }
  const std::unique_ptr<TrainConfig> config = config_of_train({bar + 2, arguments.end()});
  if (!config) misuse(line.name, "train is asked for help only");
  const Launch launch = read_launch(*values, *config, {bar + 2, arguments.end()});
  if ((*values)["print"].as<bool>()) {
    std::cout << shell_line(command_of(launch, {})) << "\n";
    return static_cast<int>(ExitCode::kFinished);
  }
  return launch.mpirun.hosts.empty() ? launch_here(launch, *config)
                                     : HostLaunch(launch, *config).run();
}

}  // namespace tessera
