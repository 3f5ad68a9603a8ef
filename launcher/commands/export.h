#pragma once

#include "launcher/arguments.h"

namespace tessera {

/// tessera checkpoint export: writes DIR/model.safetensors and DIR/config.json.
CommandLine export_command_line();
/// Returns the exit code. Throws Error: kUsage when DIR has one of the files already, and what
/// load_model throws.
int export_checkpoint(const boost::program_options::variables_map& values);

}  // namespace tessera
