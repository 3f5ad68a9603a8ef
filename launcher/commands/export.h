#pragma once

#include "launcher/arguments.h"

namespace tessera {

/// tessera checkpoint export: writes DIR/model.safetensors, or several files, and DIR/config.json.
CommandLine export_command_line();
/// Returns the exit code. Throws Error: kUsage for wrong options, and what
/// export_model throws.
int export_checkpoint(const boost::program_options::variables_map& values);

}  // namespace tessera
