#include "launcher/captured_command.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>

#include "kernels/core/error.h"
#include "launcher/start_process.h"

namespace tessera {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// One end of a pipe or a file: closed when it goes out of sight.
class OpenFile {
 public:
  explicit OpenFile(int number = -1) : number_(number) {}
  ~OpenFile() { reset(); }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  int number() const { return number_; }
  void reset(int number = -1) {
    if (number_ >= 0) close(number_);
    number_ = number;
  }

 private:
  int number_;
};

// A pipe of which this end never blocks.
struct Pipe {
  OpenFile ours;
  OpenFile theirs;

  Pipe() {
    std::array<int, 2> ends{};
    CHECK(pipe2(ends.data(), O_CLOEXEC) == 0, "no pipe: ", std::strerror(errno));
    ours.reset(ends[0]);
    theirs.reset(ends[1]);
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
  }
};

// Takes what is there, but not without end from one who writes without end; closes the pipe at its
// end.
void take(OpenFile& from, std::string& to, size_t most) {
  std::array<char, 65536> block{};
  for (int i = 0; i < 16 && from.number() >= 0; ++i) {
    const ssize_t got = read(from.number(), block.data(), block.size());
    if (got > 0) {
      to.append(block.data(), std::min(static_cast<size_t>(got), most - to.size()));
    } else if (got < 0 && errno == EINTR) {
      continue;
    } else {
      if (got == 0 || errno != EAGAIN) from.reset();
      return;
    }
  }
}

// The child, its outputs, and the patience for it.
class Watched {
 public:
  Watched(const std::vector<std::string>& command, const CaptureLimits& limits)
      : limits_(limits), nothing_(open("/dev/null", O_RDONLY | O_CLOEXEC)) {
    child_ = start_process(command, {.input = nothing_.number(),
                                     .output = output_.theirs.number(),
                                     .errors = errors_.theirs.number()});
    output_.theirs.reset();
    errors_.theirs.reset();
  }

  void run_to_its_end(CapturedCommand& result) {
    const auto begin = Clock::now();
    double end = limits_.seconds;
    std::vector<int> kills{SIGKILL, SIGTERM};
    for (; !ended(result); wait(std::max(0.0, end - seconds_since(begin)))) {
      take_all(result);
      if (seconds_since(begin) < end) continue;
      result.timed_out = true;
      if (kills.empty()) break;  // the kernel does not let it go, as from a dead file server
      result.exit_code = 128 + kills.back();
      kill(-child_, kills.back());
      kills.pop_back();
      end = seconds_since(begin) + limits_.grace;
    }
    take_all(result);
    result.seconds = seconds_since(begin);
  }

 private:
  bool ended(CapturedCommand& result) const {
    int status = 0;
    const pid_t pid = waitpid(child_, &status, WNOHANG);
    if (pid == 0 || (pid < 0 && errno == EINTR)) return false;
    result.exit_code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    return true;
  }

  // Until there is something to read; not for long, as the child may end without a word.
  void wait(double seconds) {
    std::array<pollfd, 2> files{{{output_.ours.number(), POLLIN, 0},  // -1 is passed over
                                 {errors_.ours.number(), POLLIN, 0}}};
    const bool quiet = files[0].fd < 0 && files[1].fd < 0;
    poll(files.data(), files.size(),
         std::min(quiet ? 1 : 20, 1 + static_cast<int>(std::min(seconds, 1.0) * 1000)));
  }

  void take_all(CapturedCommand& result) {
    take(output_.ours, result.output, limits_.most_bytes);
    take(errors_.ours, result.errors, limits_.most_bytes);
  }

  const CaptureLimits& limits_;
  OpenFile nothing_;
  Pipe output_;
  Pipe errors_;
  pid_t child_ = -1;
};

std::string last_line(const std::string& text) {
  const size_t end = text.find_last_not_of("\r\n \t");
  if (end == std::string::npos) return "";
  const size_t before = text.find_last_of("\r\n", end);
  const size_t begin = before == std::string::npos ? 0 : before + 1;
  return text.substr(begin, end + 1 - begin);
}

std::string trouble_of(const std::string& name, const CapturedCommand& result,
                       const CaptureLimits& limits) {
  if (result.timed_out) return concat(name, " did not end within ", limits.seconds, " s");
  if (result.exit_code == 0) return "";
  const std::string said = last_line(result.errors);
  return concat(name, " ended with ", result.exit_code, said.empty() ? "" : ": ", said);
}

}  // namespace

CapturedCommand capture_command(const std::vector<std::string>& command,
                                const CaptureLimits& limits) {
  CapturedCommand result;
  try {
    Watched(command, limits).run_to_its_end(result);
  } catch (const Error& error) {
    result.exit_code = 127;
    result.trouble = error.what();
    return result;
  }
  result.trouble = trouble_of(command.front(), result, limits);
  return result;
}

}  // namespace tessera
