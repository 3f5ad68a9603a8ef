#pragma once

#include <functional>

#include "checkpoint/checkpoint.h"
#include "launcher/child_process.h"

namespace tessera {

/// When a job that has ended is started again.
struct RestartPolicy {
  int retries = 10;                ///< restarts in all
  int lives_without_progress = 3;  ///< ended in a row without a new checkpoint: that is enough
  /// Seconds before a restart; doubled after each life without progress, or none for want of hosts.
  double first_wait = 1;
  double longest_wait = 60;
};

/// A job, as its supervisor sees it.
struct SupervisedJob {
  std::function<ChildEnd()> run;             ///< one life; none when hosts are missing
  std::function<CheckpointId()> newest;      ///< valid checkpoint of the run; {} when there is none
  std::function<bool(double seconds)> wait;  ///< false: asked to stop meanwhile
};

/// Runs a job until it is finished, and again when it ends otherwise: a resumed run goes on from
/// its newest checkpoint. Returns the exit code:
///   0   finished;
///   2, 65, 66   usage, damaged data, no valid checkpoint: another life would end like this one;
///   75  it was asked to stop, or the restarts are used up: start it again later;
///   93  several lives in a row have made no new checkpoint.
/// What did not start is a restart, but no life.
int supervise(const SupervisedJob& job, const RestartPolicy& policy);

}  // namespace tessera
