#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace tessera {

/// How a child process ended.
struct ChildEnd {
  int exit_code = 0;     ///< 128 + the signal when one killed it
  bool stopped = false;  ///< this process was asked to stop while it ran, or before
  bool started = true;   ///< false: there was no child, because it could not have run
  double seconds = 0;

  /// Whether another life might end otherwise: it neither finished, nor met what would be the same
  /// again (usage, damaged data, no valid checkpoint).
  bool may_go_on() const;
};

/// Runs commands one after the other, and stands between them and the signals that this process
/// gets. SIGINT, SIGTERM and SIGUSR1 ask the child to stop, as SIGUSR1, which mpirun hands on to
/// its ranks; the second one ends it with SIGTERM. The child is in a process group of its own, so
/// that Ctrl-C in a terminal comes to it by this way alone, and it gets SIGTERM when this process
/// dies.
///
/// Make it before other threads: from then on these signals are blocked in all of them.
class ChildRunner {
 public:
  ChildRunner();

  /// Runs `command`, found in PATH, to its end. Its output is that of this process. Throws kUsage
  /// when it cannot be started.
  ChildEnd run(const std::vector<std::string>& command);
  /// Sleeps; false as soon as this process is asked to stop, or when it was before.
  bool wait(double seconds);
  bool stopped() const { return signals_ > 0; }

 private:
  void take(int number, pid_t child);

  int signals_ = 0;  ///< that asked to stop
};

}  // namespace tessera
