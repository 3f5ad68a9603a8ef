#include "launcher/captured.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "kernels/core/error.h"

namespace tessera {

namespace {

// A file in memory, so that neither side ever waits for the other to read.
class MemoryFile {
 public:
  explicit MemoryFile(const std::string& text) : file_(memfd_create("text", MFD_CLOEXEC)) {
    CHECK(file_ >= 0, "no file in memory: ", std::strerror(errno));
    for (size_t done = 0; done < text.size();) {
      const ssize_t written = write(file_, text.data() + done, text.size() - done);
      CHECK(written > 0, "cannot write to memory: ", std::strerror(errno));
      done += static_cast<size_t>(written);
    }
    lseek(file_, 0, SEEK_SET);
  }
  ~MemoryFile() { close(file_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  int get() const { return file_; }
  std::string text() const {
    std::string all;
    std::array<char, 4096> part{};
    lseek(file_, 0, SEEK_SET);
    for (ssize_t size; (size = read(file_, part.data(), part.size())) > 0;) {
      all.append(part.data(), static_cast<size_t>(size));
    }
    return all;
  }

 private:
  int file_;
};

}  // namespace

Captured run_captured(const std::vector<std::string>& command, const std::string& input) {
  const MemoryFile in(input);
  const MemoryFile out("");
  const MemoryFile err("");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in.get(), STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, out.get(), STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, err.get(), STDERR_FILENO);
  std::vector<char*> words;
  for (const std::string& word : command) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  pid_t child = 0;
  const int trouble = posix_spawnp(&child, words[0], &actions, nullptr, words.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (trouble != 0) {
    throw Error(ExitCode::kUsage,
                concat("cannot start ", command.front(), ": ", std::strerror(trouble)));
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return {.exit_code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status),
          .output = out.text(),
          .error = err.text()};
}

}  // namespace tessera
