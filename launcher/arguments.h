#pragma once

#include <boost/program_options.hpp>
#include <optional>
#include <string>
#include <vector>

#include "kernels/core/device.h"

namespace tessera {

/// What a sub-command accepts and how it describes itself.
struct CommandLine {
  std::string name;   ///< "data prepare", without "tessera"
  std::string usage;  ///< what follows the name: "CONFIG [options]"
  std::string about;  ///< what it does, in lines of at most 98 columns
  /// Ready to be copied into a shell, each with a line before it that says what for.
  std::string examples;
  boost::program_options::options_description options{"options", 98};
  /// Names of the arguments without "--", in order: required, read as std::string.
  std::vector<std::string> positional = {};
};

/// The values of `arguments`, or nothing when they ask for --help, which is then printed on
/// standard output. Names are never guessed from their beginning. Throws Error(kUsage) as misuse()
/// for: an unknown option (with the nearest known one), a missing or impossible value, an option
/// given twice that is not a list, an argument too many or too few.
std::optional<boost::program_options::variables_map> parse_arguments(
    const CommandLine& line, const std::vector<std::string>& arguments);

/// The values of --device and --threads: a stream on the CPU, or on GPU 0.
struct WorkPlace {
  Device device;
  int threads;
};
void add_work_place(CommandLine& line);
WorkPlace work_place(const CommandLine& line, const boost::program_options::variables_map& values);

/// Throws Error(kUsage): "tessera data prepare: <what>; see tessera data prepare --help".
[[noreturn]] void misuse(const std::string& command, const std::string& what);

}  // namespace tessera
