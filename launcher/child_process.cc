#include "launcher/child_process.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstring>

#include "kernels/core/error.h"
#include "kernels/core/log.h"

namespace tessera {

namespace {

using Clock = std::chrono::steady_clock;

sigset_t watched() {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGINT, SIGTERM, SIGUSR1, SIGCHLD}) sigaddset(&set, number);
  return set;
}

// In the child: becomes `command`, or tells why not through `trouble`.
[[noreturn]] void become(const std::vector<std::string>& command, pid_t parent, int trouble) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(1);  // it died before it could be watched
  const sigset_t set = watched();
  sigprocmask(SIG_UNBLOCK, &set, nullptr);
  std::vector<char*> words;
  for (const std::string& word : command) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  execvp(words[0], words.data());
  const int error = errno;
  (void)!write(trouble, &error, sizeof error);
  _exit(1);
}

// Returns when the child runs the command. Throws when it could not.
pid_t start(const std::vector<std::string>& command) {
  std::array<int, 2> trouble{};
  CHECK(pipe2(trouble.data(), O_CLOEXEC) == 0, "no pipe: ", std::strerror(errno));
  const pid_t parent = getpid();
  const pid_t child = fork();
  CHECK(child >= 0, "cannot fork: ", std::strerror(errno));
  if (child == 0) become(command, parent, trouble[1]);
  close(trouble[1]);
  int error = 0;
  const bool failed = read(trouble[0], &error, sizeof error) == sizeof error;
  close(trouble[0]);
  if (!failed) return child;
  waitpid(child, nullptr, 0);
  throw Error(ExitCode::kUsage, concat("cannot start ", command.front(), ": ", std::strerror(error),
                                       "; is it installed and in PATH?"));
}

}  // namespace

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
  const pid_t child = start(command);
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
