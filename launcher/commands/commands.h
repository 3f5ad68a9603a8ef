#pragma once

#include <string>
#include <vector>

namespace tessera {

/// The sub-commands of `tessera`, one file each. `arguments` are those behind the sub-command's
/// name. Returns the exit code of the process; throws Error with the code for what went wrong.

/// tessera train: the rank program.
int run_train(const std::vector<std::string>& arguments);
/// tessera launch: mpirun, and restarts.
int run_launch(const std::vector<std::string>& arguments);
/// tessera submit: a job for Slurm.
int run_submit(const std::vector<std::string>& arguments);
/// tessera plan: which meshes suit a configuration.
int run_plan(const std::vector<std::string>& arguments);
/// tessera generate: continues a text.
int run_generate(const std::vector<std::string>& arguments);
/// tessera score: logits, losses and gradients of given tokens.
int run_score(const std::vector<std::string>& arguments);
/// tessera checkpoint list, inspect, verify, diff, export: look at checkpoints.
int run_checkpoint(const std::vector<std::string>& arguments);
/// tessera data prepare: text to tokens.
int run_data(const std::vector<std::string>& arguments);

}  // namespace tessera
