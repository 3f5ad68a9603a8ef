#pragma once

#include <filesystem>
#include <string>

#include "kernels/core/error.h"

namespace tessera {

/// One line on standard error, with the time and, in a world of several ranks, the rank.
void log_line(const std::string& message);

/// As log_line, from rank 0 only: for facts that are the same on every rank.
void log_once(const std::string& message);

/// From now on every line of this process is appended to `path` too. Throws when it cannot be
/// opened.
void also_log_to(const std::filesystem::path& path);

}  // namespace tessera
