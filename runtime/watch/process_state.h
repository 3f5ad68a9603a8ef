#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>
#include <vector>

namespace tessera {

/// What the kernel says of a process.
struct ProcessState {
  char state = 'X';  ///< R running, S sleeping, D waiting for a device, T stopped, t traced,
                     ///< Z ended, X gone
  std::string waits_at = {};  ///< the kernel function that it sleeps in, when that is told
};

/// Reads /proc; X when there is no such process.
ProcessState process_state(pid_t process);
/// The state in the text of /proc/PID/stat; X when it is none.
char state_in(std::string_view stat);
/// "T (stopped)".
std::string to_text(char state);
/// The threads of a process; empty when it is gone.
std::vector<pid_t> threads_of(pid_t process);

}  // namespace tessera
