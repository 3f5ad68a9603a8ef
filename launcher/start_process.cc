#include "launcher/start_process.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "kernels/core/error.h"

namespace tessera {

namespace {

// In the child, where only what is safe in a signal handler may be called: becomes the program, or
// tells why not through `trouble`.
[[noreturn]] void become(char* const* words, pid_t parent, const ProcessFiles& files, int trouble) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(1);  // it died before it could be watched
  signal(SIGPIPE, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  const std::array<int, 3> from{files.input, files.output, files.errors};
  bool placed = true;
  for (int i = 0; i < 3; ++i) {
    if (from[static_cast<size_t>(i)] >= 0) placed &= dup2(from[static_cast<size_t>(i)], i) == i;
  }
  if (placed) execvp(words[0], words);
  const int error = errno;
  (void)!write(trouble, &error, sizeof error);
  _exit(1);
}

}  // namespace

pid_t start_process(const std::vector<std::string>& command, const ProcessFiles& files) {
  std::vector<char*> words;
  for (const std::string& word : command) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  std::array<int, 2> trouble{};
  CHECK(pipe2(trouble.data(), O_CLOEXEC) == 0, "no pipe: ", std::strerror(errno));
  const pid_t parent = getpid();
  const pid_t child = fork();
  const int fork_error = errno;
  if (child == 0) become(words.data(), parent, files, trouble[1]);
  close(trouble[1]);
  int error = 0;
  const bool failed = child > 0 && read(trouble[0], &error, sizeof error) == sizeof error;
  close(trouble[0]);
  CHECK(child >= 0, "cannot fork: ", std::strerror(fork_error));
  if (!failed) return child;
  waitpid(child, nullptr, 0);
  throw Error(ExitCode::kUsage, concat("cannot start ", command.front(), ": ", std::strerror(error),
                                       "; is it installed and in PATH?"));
}

}  // namespace tessera
