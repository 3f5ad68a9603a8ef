#pragma once

#include <string>

#include "kernels/core/error.h"

namespace tessera {

/// One line on standard error, with the time and, in a world of several ranks, the rank.
void log_line(const std::string& message);

/// As log_line, from rank 0 only: for facts that are the same on every rank.
void log_once(const std::string& message);

}  // namespace tessera
