#pragma once

#include <string>
#include <vector>

namespace tessera {

/// What a program said, and how it ended.
struct Captured {
  int exit_code = 0;  ///< 128 + the signal when one killed it
  std::string output;
  std::string error;
};

/// Runs `command`, found in PATH, to its end, with `input` on its standard input. Throws kUsage
/// when it cannot be started.
Captured run_captured(const std::vector<std::string>& command, const std::string& input = "");

}  // namespace tessera
