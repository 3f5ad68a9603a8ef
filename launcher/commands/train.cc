#include <chrono>
#include <iostream>
#include <optional>
#include <thread>

#include "kernels/core/log.h"
#include "launcher/arguments.h"
#include "launcher/commands/commands.h"
#include "launcher/job_environment.h"
#include "parallel/self_communicator.h"
#include "runtime/config/config.h"
#include "runtime/config/train.pb.h"
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
      "  tessera train configs/gpt2-124m-shape.textproto --dry-run\n";
  line.options.add_options()  //
      ("config", options::value<std::string>()->value_name("FILE"),
       "text-format configuration (docs/configuration.md)")  //
      ("set", options::value<std::vector<std::string>>()->composing()->value_name("A.B=VALUE"),
       "set one field of the configuration; may be given many times")  //
      ("steps", options::value<int64_t>()->value_name("N"), "short for --set steps=N")  //
      ("resume", options::value<std::string>()->default_value("auto")->value_name("FROM"),
       "auto: the newest valid checkpoint, if any; none: the start; or a checkpoint directory")  //
      ("dry-run", options::bool_switch(), "check everything that needs no training, and stop")  //
      ("help", options::bool_switch(), "show this text");
  line.positional = {"config"};
  return line;
}

ResumeFrom resume_from(const std::string& text) {
  if (text == "auto") return {.kind = ResumeFrom::Kind::kAuto};
  if (text == "none") return {.kind = ResumeFrom::Kind::kNone};
  return {.kind = ResumeFrom::Kind::kDirectory, .directory = text};
}

// A mistake that all ranks see is told by rank 0 alone: it ends the job before the others speak.
// An error of one rank alone is told by that rank, a second later.
[[noreturn]] void end_job(MpiEnvironment& mpi, int rank, const std::string& message,
                          ExitCode code) {
  if (rank > 0) std::this_thread::sleep_for(std::chrono::seconds(1));
  log_line(message);
  mpi.abort(static_cast<int>(code));
}

TrainingEnd train_in_job(TrainConfig config, const ResumeFrom& from, const JobEnvironment& job,
                         const StopSignal& stop) {
  MpiEnvironment mpi(job.started);
  Communicator& world = mpi.world();
  set_error_rank(world.rank(), world.size());
  // Caught here and not in main, because leaving this scope takes MPI down, with or without the
  // other ranks.
  try {
    resolve_mesh(config, world.size());
    return run_training(config, from, world, stop);
  } catch (const Error& error) {
    std::string message = error.what();
    if (message.starts_with(rank_prefix())) message = message.substr(rank_prefix().size());
    end_job(mpi, world.rank(), message, error.code());
  } catch (const std::exception& error) {
    end_job(mpi, world.rank(), error.what(), ExitCode::kError);
  }
}

TrainingEnd train_alone(TrainConfig config, const ResumeFrom& from, const StopSignal& stop) {
  SelfCommunicator world;
  resolve_mesh(config, world.size());
  return run_training(config, from, world, stop);
}

// The mesh that a configuration describes, whatever job asks: for checks without one.
int described_ranks(const TrainConfig& config) {
  const MeshConfig& mesh = config.mesh();
  const auto extent = [](int value) { return value > 0 ? value : 1; };
  return extent(mesh.data()) * extent(mesh.expert()) * extent(mesh.sequence()) *
         extent(mesh.tensor());
}

}  // namespace

int run_train(const std::vector<std::string>& arguments) {
  const CommandLine line = command_line();
  const auto values = parse_arguments(line, arguments);
  if (!values) return static_cast<int>(ExitCode::kFinished);
  if (!values->count("config")) misuse(line.name, "which CONFIG?");
  std::vector<std::string> overrides;
  if (values->count("set")) overrides = (*values)["set"].as<std::vector<std::string>>();
  if (values->count("steps")) {
    overrides.push_back(concat("steps=", (*values)["steps"].as<int64_t>()));
  }
  TrainConfig config = load_train_config((*values)["config"].as<std::string>(), overrides);
  if ((*values)["dry-run"].as<bool>()) {
    resolve_mesh(config, described_ranks(config));
    std::cout << dry_run(config);
    return static_cast<int>(ExitCode::kFinished);
  }
  const ResumeFrom from = resume_from((*values)["resume"].as<std::string>());
  const JobEnvironment job = job_environment();
  const StopSignal stop;
  const TrainingEnd end =
      job.ranks > 1 ? train_in_job(config, from, job, stop) : train_alone(config, from, stop);
  return static_cast<int>(end == TrainingEnd::kFinished ? ExitCode::kFinished
                                                        : ExitCode::kTryAgain);
}

}  // namespace tessera
