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
/// tessera flight: why a run hung or crashed.
int run_flight(const std::vector<std::string>& arguments);
/// tessera submit: a job for Slurm.
int run_submit(const std::vector<std::string>& arguments);
/// tessera host-check: what tessera launch asks of a host.
int run_host_check(const std::vector<std::string>& arguments);
/// tessera trace: joins what train --trace has written.
int run_trace(const std::vector<std::string>& arguments);
/// tessera plan: which meshes suit a configuration.
int run_plan(const std::vector<std::string>& arguments);
/// tessera report: a page about a run.
int run_report(const std::vector<std::string>& arguments);
/// tessera generate: continues a text.
int run_generate(const std::vector<std::string>& arguments);
/// tessera score: logits, losses and gradients of given tokens.
int run_score(const std::vector<std::string>& arguments);
/// tessera eval task: what a model makes of a synthetic task.
int run_eval(const std::vector<std::string>& arguments);
/// tessera checkpoint list, inspect, verify, diff, export: look at checkpoints.
int run_checkpoint(const std::vector<std::string>& arguments);
/// tessera doctor: what training needs of this host and of others.
int run_doctor(const std::vector<std::string>& arguments);
/// tessera data prepare, task: text to tokens, and samples of synthetic tasks.
int run_data(const std::vector<std::string>& arguments);

}  // namespace tessera
