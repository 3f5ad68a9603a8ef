#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace tessera {

/// What a command wrote, and how it ended.
struct CapturedCommand {
  /// Its own; 128 + the signal when one killed it; 127 when it could not be started.
  int exit_code = 0;
  bool timed_out = false;  ///< it was ended because its time was over
  std::string output;      ///< what it wrote on standard output
  std::string errors;      ///< and on standard error
  /// Empty when it ran to its end with exit code 0; else one clause that names the command and says
  /// what went wrong: that it is not there, took too long, or its exit code with the last line that
  /// it wrote on standard error.
  std::string trouble;
  double seconds = 0;

  bool ok() const { return trouble.empty(); }
};

struct CaptureLimits {
  double seconds = 10;           ///< then its process group gets SIGTERM, and after `grace` SIGKILL
  double grace = 1;              ///< seconds; mpirun needs some to end its ranks
  size_t most_bytes = 1U << 20;  ///< kept of each output; the rest is read and dropped
};

/// Runs `command`, found in PATH, without a shell and without input, and waits for its end. Never
/// throws for what the command does or is: see `trouble`. Processes that it leaves behind are not
/// waited for, even when they keep its outputs open. May be called by several threads at once.
CapturedCommand capture_command(const std::vector<std::string>& command,
                                const CaptureLimits& limits = {});

}  // namespace tessera
