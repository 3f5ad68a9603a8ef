#pragma once

#include <string>

#include "launcher/captured_command.h"

namespace tessera {

/// One clause of what went wrong with a job, and what to do about it.
struct MpirunTrouble {
  std::string found;
  std::string advice;
};

/// From what mpirun and its ranks have said: often many lines in frames, of which few matter.
MpirunTrouble mpirun_trouble(const CapturedCommand& said);

}  // namespace tessera
