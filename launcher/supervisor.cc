#include "launcher/supervisor.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/error.h"
#include "kernels/core/log.h"

namespace tessera {

namespace {

constexpr int code_of(ExitCode code) {
  return static_cast<int>(code);
}

std::string describe(const ChildEnd& end, const CheckpointId& newest) {
  if (!end.started) return "the job could not start";
  return concat("the job ended with exit code ", end.exit_code, " after ", std::lround(end.seconds),
                " s; ",
                newest.epoch > 0 ? concat("its newest checkpoint is of step ", newest.step)
                                 : std::string("it has no checkpoint"));
}

}  // namespace

int supervise(const SupervisedJob& job, const RestartPolicy& policy) {
  CheckpointId newest = job.newest();
  int barren = 0;  // lives in a row without progress
  double wait = policy.first_wait;
  for (int restarts = 0;; ++restarts) {
    const ChildEnd end = job.run();
    if (!end.may_go_on()) return end.exit_code;
    const CheckpointId now = job.newest();
    if (end.started) barren = now > newest ? 0 : barren + 1;
    newest = std::max(newest, now);
    const std::string what = describe(end, newest);
    if (end.stopped) {
      log_line(concat(what, ", and was asked to stop: start it again to go on"));
      return code_of(ExitCode::kTryAgain);
    }
    if (end.started && barren >= policy.lives_without_progress) {
      log_line(concat(what, ", as after ", barren, " starts in a row: something must be mended"));
      return code_of(ExitCode::kNoProgress);
    }
    if (restarts == policy.retries) {
      log_line(concat(what, "; all ", policy.retries, " restarts are used up"));
      return code_of(ExitCode::kTryAgain);
    }
    wait = end.started && barren == 0 ? policy.first_wait : std::min(policy.longest_wait, 2 * wait);
    log_line(concat(what, "; restart ", restarts + 1, " of ", policy.retries, " in ", wait, " s"));
    if (!job.wait(wait)) return code_of(ExitCode::kTryAgain);
  }
}

}  // namespace tessera
