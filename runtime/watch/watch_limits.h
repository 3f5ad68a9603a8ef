#pragma once

namespace tessera {

/// How long things may take before a run counts as hanging, in seconds.
struct WatchLimits {
  double setup = 900;  ///< until the first steps are done
  double step = 60;    ///< or five times the slow ones (StepTimes), when that is more
  double validation = 300;
  double checkpoint = 300;
  double between = 90;  ///< from one step to the next, and the end of a run
  double stopped = 20;  ///< a process that is stopped
  double silence = 15;  ///< without a word from a rank's watcher: its host is lost
  double lease = 20;    ///< without a word from rank 0's watcher: this rank must end
  double report = 30;   ///< time between two comparisons of the ranks' speeds
};

}  // namespace tessera
