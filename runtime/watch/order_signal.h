#pragma once

#include <sys/types.h>

#include <filesystem>

namespace tessera {

/// A rank's ear for its watcher, also while all its threads hang: a signal that writes the stack of
/// a thread, or ends the process with exit code 75. Both are safe in whatever it interrupts.

/// For the rank: from now on it obeys.
void obey_watcher();

/// For the watcher: every thread of `process` appends its stack to `stacks`, which is open in the
/// process as descriptor `descriptor`; one after the other, each for at most 200 ms.
void ask_for_stacks(pid_t process, const std::filesystem::path& stacks, int descriptor);
/// Ends the process with exit code 75, also when it is stopped.
void order_exit(pid_t process);

}  // namespace tessera
