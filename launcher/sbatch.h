#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "launcher/captured.h"

namespace tessera {

/// Runs sbatch with `options`, and returns what it printed. Throws Error with what sbatch said in
/// one sentence and the way out: kTryAgain when the controller does not answer, else kUsage, also
/// when there is no sbatch. `script` is its standard input.
std::string run_sbatch(const std::vector<std::string>& options, const std::string& script = "");

/// The reason in what sbatch says when it refuses a job: without its prefixes, in one line.
std::string sbatch_reason(const std::string& said);

/// What to do about a reason.
std::string way_out(const std::string& reason);

}  // namespace tessera
