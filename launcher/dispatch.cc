#include "launcher/dispatch.h"

#include <array>
#include <iostream>

#include "kernels/core/error.h"
#include "launcher/arguments.h"
#include "launcher/commands/commands.h"
#include "launcher/version.h"
#include "runtime/config/wording.h"

namespace tessera {

namespace {

struct Command {
  const char* name;
  const char* job;  ///< empty: it is for other commands to run, and the help leaves it out
  int (*run)(const std::vector<std::string>& arguments);
};

constexpr std::array kCommands = std::to_array<Command>({
    {"train", "train a model, alone or as one rank of a job", run_train},
    {"launch", "run a job of several ranks, and start it again when it dies", run_launch},
    {"flight", "explain why a run hung or crashed", run_flight},
    {"report", "write a page about a run: curves, heat maps, what deserves a look", run_report},
    {"submit", "give a job to Slurm that goes on until the run is finished", run_submit},
    {"trace", "join the timelines of ranks to one for a browser", run_trace},
    {"plan", "find the best mesh for a configuration and a number of ranks", run_plan},
    {"data", "make token shards from text", run_data},
    {"doctor", "look at MPI, Slurm, GPUs, networks, limits and storage", run_doctor},
    {"checkpoint", "list, inspect, verify and compare checkpoints", run_checkpoint},
    {"generate", "continue a text with a trained model", run_generate},
    {"host-check", "", run_host_check},
    {"eval", "ask a trained model a synthetic task", run_eval},
    {"score", "logits, losses and gradients of given tokens", run_score},
});

void print_help() {
  std::cout << "usage: tessera COMMAND ...\n\n"
               "Trains, checks and serves language models with sparse attention and experts.\n\n";
  for (const Command& command : kCommands) {
    if (*command.job == '\0') continue;
    std::string name = command.name;
    name.resize(12, ' ');
    std::cout << "  " << name << command.job << "\n";
  }
  std::cout
      << "\n"
         "tessera COMMAND --help says more. Exit codes: 0 finished, 1 error, 2 wrong usage or\n"
         "configuration, 65 damaged data or checkpoint, 66 no valid checkpoint, 75 try again,\n"
         "93 no progress.\n\n"
         "example: tessera data prepare --input /usr/include/c++ --output data/headers\n";
}

}  // namespace

int dispatch(const std::vector<std::string>& arguments) {
  if (arguments.empty()) misuse("", "the command is missing");
  const std::string& name = arguments.front();
  if (name == "--help" || name == "-h" || name == "help") {
    print_help();
    return 0;
  }
  if (name == "--version") {
    std::cout << version_text() << "\n";
    return 0;
  }
  std::vector<std::string> names;
  for (const Command& command : kCommands) {
    if (name == command.name) return command.run({arguments.begin() + 1, arguments.end()});
    if (*command.job != '\0') names.push_back(command.name);
  }
  misuse("", concat("there is no command ", in_quotes(name), did_you_mean(name, names)));
}

}  // namespace tessera
