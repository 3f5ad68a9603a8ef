#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace tessera {

/// Where a started process reads from and writes to; -1: as this process.
struct ProcessFiles {
  int input = -1;
  int output = -1;
  int errors = -1;
};

/// Starts `command`, found in PATH, without a shell; returns its id when it runs. It is in a
/// process group of its own, so that Ctrl-C in a terminal does not come to it, it has no signal
/// blocked, and it gets SIGTERM when the thread that called this ends. Its end is for the caller to
/// wait for. Throws kUsage when it cannot be started, as with a program that is not installed.
pid_t start_process(const std::vector<std::string>& command, const ProcessFiles& files = {});

}  // namespace tessera
