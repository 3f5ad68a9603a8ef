#pragma once

#include <string>

#include "launcher/captured_command.h"
#include "launcher/mpirun.h"

namespace tessera {

/// Starts the ranks of a job as it would be, but each only says hello to every other one: whether
/// mpirun can start them and they can talk. Returns what is wrong, in one clause; empty: nothing.
/// Takes a minute at most.
std::string probe_ranks(const MpirunOptions& options, const std::string& program);

/// The rank's part in it.
void exchange_greetings();

/// What mpirun and its ranks have said, in one clause. Which host cannot reach which, when that is
/// it; else the beginning of what they wrote, on one line.
std::string explain_mpirun(const CapturedCommand& said);

}  // namespace tessera
