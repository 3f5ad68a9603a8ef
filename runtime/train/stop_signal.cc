#include "runtime/train/stop_signal.h"

#include <pthread.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

#include "kernels/core/error.h"
#include "kernels/core/log.h"

namespace tessera {

namespace {

sigset_t stop_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGINT, SIGTERM, SIGUSR1}) sigaddset(&set, number);
  return set;
}

}  // namespace

StopSignal::StopSignal(int rank, int ranks) {
  const sigset_t set = stop_signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  thread_ = std::thread([=, this] { wait(rank, ranks); });
}

StopSignal::~StopSignal() {
  leaving_.store(true);
  pthread_kill(thread_.native_handle(), SIGUSR1);
  thread_.join();
}

void StopSignal::wait(int rank, int ranks) {
  if (ranks > 1) set_error_rank(rank, ranks);
  const sigset_t set = stop_signals();
  while (true) {
    int number = 0;
    sigwait(&set, &number);
    if (leaving_.load()) return;
    if (requested_.exchange(true)) _exit(static_cast<int>(ExitCode::kTryAgain));
    log_once(concat(strsignal(number), ": stopping after this step; once more to leave at once"));
  }
}

}  // namespace tessera
