#include "launcher/child_process.h"

#include <sys/wait.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <cstring>

#include "kernels/core/log.h"
#include "launcher/start_process.h"

namespace tessera {

namespace {

using Clock = std::chrono::steady_clock;

sigset_t watched() {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGINT, SIGTERM, SIGUSR1, SIGCHLD}) sigaddset(&set, number);
  return set;
}

}  // namespace

bool ChildEnd::may_go_on() const {
  for (const ExitCode code :
       {ExitCode::kFinished, ExitCode::kUsage, ExitCode::kBadData, ExitCode::kNoCheckpoint}) {
    if (exit_code == static_cast<int>(code)) return false;
  }
  return true;
}

ChildRunner::ChildRunner() {
  const sigset_t set = watched();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

void ChildRunner::take(int number, pid_t child) {
  ++signals_;
  log_line(concat(strsignal(number), signals_ == 1
                                         ? ": the job stops after this step; once more to end it"
                                         : ": ending the job"));
  kill(child, signals_ == 1 ? SIGUSR1 : SIGTERM);
}

ChildEnd ChildRunner::run(const std::vector<std::string>& command) {
  const auto begin = Clock::now();
  const pid_t child = start_process(command);
  const sigset_t set = watched();
  int status = 0;
  while (waitpid(child, &status, WNOHANG) == 0) {
    const int number = sigwaitinfo(&set, nullptr);
    if (number > 0 && number != SIGCHLD) take(number, child);
  }
  return {.exit_code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status),
          .stopped = stopped(),
          .seconds = std::chrono::duration<double>(Clock::now() - begin).count()};
}

bool ChildRunner::wait(double seconds) {
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  sigset_t set = watched();
  sigdelset(&set, SIGCHLD);
  while (!stopped()) {
    const double left = std::chrono::duration<double>(end - Clock::now()).count();
    if (left <= 0) return true;
    timespec time{};
    time.tv_sec = static_cast<time_t>(left);
    time.tv_nsec = static_cast<long>((left - std::floor(left)) * 1e9);
    if (sigtimedwait(&set, nullptr, &time) > 0) ++signals_;
  }
  return false;
}

}  // namespace tessera
