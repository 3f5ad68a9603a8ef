#pragma once

#include "launcher/arguments.h"

namespace tessera {

/// tessera checkpoint import: makes step 0 of a run from a model of Hugging Face.
CommandLine import_command_line();
/// Returns the exit code. Throws Error: kUsage for wrong options or configuration, and what
/// import_model throws.
int import_checkpoint(const boost::program_options::variables_map& values);

}  // namespace tessera
