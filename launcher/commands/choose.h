#pragma once

#include "launcher/arguments.h"

namespace tessera {

/// tessera checkpoint choose: learns which KV groups of a dense model ought to be global, and puts
/// them first.
CommandLine choose_command_line();
/// Returns the exit code. Throws Error: kUsage for wrong options, and what choose_groups throws.
int choose_checkpoint(const boost::program_options::variables_map& values);

}  // namespace tessera
