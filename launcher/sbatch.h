#pragma once

#include <string>
#include <vector>

namespace tessera {

/// Runs sbatch with `options`, and returns all that it said. Throws Error with the reason and the
/// way out in one sentence when it refuses: kTryAgain when the controller does not answer, else
/// kUsage, also when there is no sbatch.
std::string run_sbatch(const std::vector<std::string>& options);

/// The reason in what sbatch says when it refuses a job: without its prefixes, in one line.
std::string sbatch_reason(const std::string& said);

/// What to do about a reason.
std::string way_out(const std::string& reason);

/// Which of `jobs`, numbers with commas between them, Slurm has not ended yet: "17 (RUNNING)".
/// Empty when there is none, and when Slurm does not answer.
std::string queued_jobs(const std::string& jobs);

}  // namespace tessera
