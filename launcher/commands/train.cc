#include "launcher/commands/train.h"

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <optional>
#include <thread>

#include "checkpoint/fail_points.h"
#include "kernels/core/log.h"
#include "launcher/arguments.h"
#include "launcher/commands/commands.h"
#include "launcher/job_environment.h"
#include "parallel/agreement.h"
#include "parallel/self_communicator.h"
#include "runtime/config/config.h"
#include "runtime/config/train.pb.h"
#include "runtime/hooks/library_hook.h"
#include "runtime/train/run_training.h"

namespace tessera {

namespace {

CommandLine command_line() {
  namespace options = boost::program_options;
  CommandLine line;
  line.name = "train";
  line.usage = "CONFIG [options]";
  line.about =
      "Trains a model. Every rank of a job runs this same command, under mpirun, srun or alone.\n"
      "A run that was stopped goes on from its newest checkpoint; a finished one does nothing.";
  line.examples =
      "on two ranks, with another learning rate\n"
      "  mpirun -np 2 tessera train configs/quickstart.textproto "
      "--set optimizer.learning_rate=1e-3\n"
      "will it fit? checks shapes and counts bytes, trains nothing\n"
      "  tessera train configs/gpt2-124m-shape.textproto --dry-run\n"
      "where does the time of a step go?\n"
      "  mpirun -np 2 tessera train configs/quickstart.textproto --trace=101:105\n";
  line.options.add_options()  //
      ("config", options::value<std::string>()->value_name("FILE"),
       "text-format configuration (docs/configuration.md)")  //
      ("set", options::value<std::vector<std::string>>()->composing()->value_name("A.B=VALUE"),
       "set one field of the configuration; may be given many times")                   //
      ("steps", options::value<int64_t>()->value_name("N"), "short for --set steps=N")  //
      ("resume", options::value<std::string>()->default_value("auto")->value_name("FROM"),
       "auto: the newest valid checkpoint, if any; none: the start; or a checkpoint directory")  //
      ("trace", options::value<std::string>()->implicit_value("")->value_name("STEPS"),
       "write a timeline to RUN/trace/ (docs/trace.md): --trace=FIRST:LAST, these steps of the "
       "run; "
       "--trace=N, the first N of this start; --trace, its steps 11 to 20")                     //
      ("dry-run", options::bool_switch(), "check everything that needs no training, and stop")  //
      ("help", options::bool_switch(), "show this text");
  line.positional = {"config"};
  return line;
}

int exit_code(TrainingEnd end) {
  return static_cast<int>(end == TrainingEnd::kFinished ? ExitCode::kFinished
                                                        : ExitCode::kTryAgain);
}

ResumeFrom resume_from(const std::string& text) {
  if (text == "auto") return {.kind = ResumeFrom::Kind::kAuto};
  if (text == "none") return {.kind = ResumeFrom::Kind::kNone};
  return {.kind = ResumeFrom::Kind::kDirectory, .directory = text};
}

// An error that one rank alone may have met: the others wait for it in some exchange. Rank 0 tells
// it at once; the others a second later, because when all meet it one telling is enough.
[[noreturn]] void end_job(MpiEnvironment& mpi, RankWatch& watch, int rank,
                          const std::string& message, ExitCode code) {
  if (rank > 0) std::this_thread::sleep_for(std::chrono::seconds(1));
  log_line(message);
  // Of an exchange that failed, the watchers may know why.
  if (code == ExitCode::kError) watch.fail();
  mpi.abort(static_cast<int>(code));
}

// What a run needs to begin. Every rank has its own files and environment, and when one of them
// cannot begin, none does: rank 0 says why, and all end with the same code.
struct Beginning {
  std::function<TrainConfig()> load;
  ResumeFrom from;
  JobEnvironment job;
  FailPoints faults;
  TraceSteps traced;
};

// Exchanges that a test wants left out (checkpoint/fail_points.h).
void arm_exchanges(const FailPoints& faults, Communicator& world) {
  if (!faults.armed()) return;
  world.log().ask_before([&faults, rank = world.rank()] { return faults.passes_exchange(rank); });
}

// Faults that a test asks for (checkpoint/fail_points.h); none otherwise.
FailPoints faults_of_environment() {
  const char* text = std::getenv("TESSERA_FAILPOINT");
  return FailPoints(text == nullptr ? "" : text);
}

// The exit code.
int train_in_job(const Beginning& begin, const StopSignal& stop, RankWatch& watch) {
  MpiEnvironment mpi;
  Communicator& world = mpi.world();
  set_error_rank(world.rank(), world.size());
  // Caught here and not in main, because leaving this scope takes MPI down, with or without the
  // other ranks.
  try {
    TrainConfig config;
    const std::optional<Failure> failure =
        first_failure(world, failure_of([&] {
                        check_world_size(world.size(), begin.job.started);
                        config = begin.load();
                        resolve_mesh(config, world.size());
                      }));
    if (failure) {
      // Of several worlds that should have been one, each has a rank 0.
      if (world.rank() == 0 && begin.job.rank == 0) {
        const std::string why = failure->rank == 0 ? failure->reason : to_text(*failure, world);
        std::cerr << why << "\n";
      }
      return static_cast<int>(failure->code);
    }
    arm_exchanges(begin.faults, world);
    const TrainingEnd end = run_training(
        config, begin.from, world, stop,
        {.on_stage = begin.faults.observer(world.rank()), .watch = &watch, .traced = begin.traced});
    watch.forget();
    return exit_code(end);
  } catch (const Error& error) {
    end_job(mpi, watch, world.rank(), without_rank(error.what()), error.code());
  } catch (const std::exception& error) {
    end_job(mpi, watch, world.rank(), error.what(), ExitCode::kError);
  }
}

int train_alone(const Beginning& begin, const StopSignal& stop, RankWatch& watch) {
  SelfCommunicator world;
  TrainConfig config = begin.load();
  resolve_mesh(config, world.size());
  const TrainingEnd end =
      run_training(config, begin.from, world, stop,
                   {.on_stage = begin.faults.observer(0), .watch = &watch, .traced = begin.traced});
  watch.forget();
  return exit_code(end);
}

// --trace may stand without a value, and then anywhere: Boost would take what follows for one.
std::vector<std::string> bare_trace_last(std::vector<std::string> arguments) {
  for (size_t i = 0; i + 1 < arguments.size(); ++i) {
    const std::string& next = arguments[i + 1];
    if (arguments[i] != "--trace" || (!next.empty() && std::isdigit(next[0]) != 0)) continue;
    std::rotate(arguments.begin() + static_cast<std::ptrdiff_t>(i),
                arguments.begin() + static_cast<std::ptrdiff_t>(i) + 1, arguments.end());
    break;
  }
  return arguments;
}

TraceSteps traced_steps(const boost::program_options::variables_map& values) {
  if (values.count("trace") == 0) return {};
  const std::string& text = values["trace"].as<std::string>();
  return text.empty() ? kUsualTrace : parse_trace_steps(text);
}

TrainConfig load(const boost::program_options::variables_map& values) {
  std::vector<std::string> overrides;
  if (values.count("set")) overrides = values["set"].as<std::vector<std::string>>();
  if (values.count("steps")) overrides.push_back(concat("steps=", values["steps"].as<int64_t>()));
  return load_train_config(values["config"].as<std::string>(), overrides);
}

}  // namespace

std::unique_ptr<TrainConfig> config_of_train(const std::vector<std::string>& arguments) {
  const auto values = parse_arguments(command_line(), bare_trace_last(arguments));
  return values ? std::make_unique<TrainConfig>(load(*values)) : nullptr;
}

int run_train(const std::vector<std::string>& arguments) {
  const CommandLine line = command_line();
  const auto values = parse_arguments(line, bare_trace_last(arguments));
  if (!values) return static_cast<int>(ExitCode::kFinished);
  const Beginning begin{.load = [&] { return load(*values); },
                        .from = resume_from((*values)["resume"].as<std::string>()),
                        .job = job_environment(),
                        .faults = faults_of_environment(),
                        .traced = traced_steps(*values)};
  if ((*values)["dry-run"].as<bool>()) {
    TrainConfig config = begin.load();
    const int ranks = described_ranks(config);
    resolve_mesh(config, ranks);
    if (begin.job.rank == 0) {
      make_hooks(config, 0, ranks);  // can be loaded, and take their options
      std::cout << dry_run(config);
    }
    return static_cast<int>(ExitCode::kFinished);
  }
  RankWatch watch;
  const StopSignal stop(begin.job.rank, begin.job.ranks);
  const int code =
      begin.job.ranks > 1 ? train_in_job(begin, stop, watch) : train_alone(begin, stop, watch);
  watch.end();
  return code;
}

}  // namespace tessera
