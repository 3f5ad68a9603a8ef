#pragma once

#include <string>
#include <vector>

namespace tessera {

/// Runs `tessera <arguments>`: finds the sub-command and hands it the rest. Returns the exit code;
/// throws Error(kUsage) for a command that does not exist, with the nearest one that does.
int dispatch(const std::vector<std::string>& arguments);

}  // namespace tessera
