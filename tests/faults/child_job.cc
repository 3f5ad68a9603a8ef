#include "tests/faults/child_job.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <thread>

#include "kernels/core/error.h"
#include "parallel/thread_communicator.h"

namespace tessera::faults {

namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kPatience{60};

void say(int pipe, const Message& message) {
  const std::string line = encode(message);
  // The driver is gone, or has stopped listening: nobody is left to save for.
  if (write(pipe, line.data(), line.size()) != std::ssize(line)) _exit(4);
}

int run_job(const SaveJob& job, int ranks, int pipe) {
  try {
    run_ranks(ranks, [&](Communicator& world) {
      save_steps(world, job, [&](const Message& message) { say(pipe, message); });
    });
    return 0;
  } catch (const Error& error) {
    say(pipe, {Event::kEnded, 0, error.what()});
    return static_cast<int>(error.code());
  }
}

}  // namespace

std::string encode(const Message& message) {
  std::string text = message.text.substr(0, 2000);
  for (char& c : text) c = c == '\n' ? ' ' : c;
  return concat(static_cast<char>(message.event), " ", message.step, " ", text, "\n");
}

Message decode(const std::string& line) {
  std::istringstream in(line);
  char event = 0;
  Message message;
  in >> event >> message.step;
  CHECK(in && std::string("rcfe").find(event) != std::string::npos, "a child says \"", line, "\"");
  message.event = static_cast<Event>(event);
  in.get();
  std::getline(in, message.text);
  return message;
}

ChildJob::ChildJob(const SaveJob& job, int ranks) {
  start([&] { return run_job(job, ranks, kMessages); });
}

ChildJob::ChildJob(const std::vector<std::string>& command) {
  start([&] {
    std::vector<char*> arguments;
    for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    setenv(kPipeVariable, concat("/proc/", getpid(), "/fd/", kMessages).c_str(), 1);
    execvp(arguments[0], arguments.data());
    return 127;
  });
}

ChildJob::~ChildJob() {
  send(SIGKILL);
  if (!status_) waitpid(id_, nullptr, 0);
  close(pipe_);
}

void ChildJob::start(const std::function<int()>& body) {
  std::array<int, 2> ends{};
  CHECK(pipe2(ends.data(), O_CLOEXEC) == 0, "no pipe");
  std::fflush(nullptr);
  const pid_t parent = getpid();
  id_ = fork();
  CHECK(id_ >= 0, "no process");
  if (id_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);  // it died before
    dup2(ends[1], kMessages);
    const int quiet = open("/dev/null", O_WRONLY);
    dup2(quiet, STDERR_FILENO);
    close_range(kMessages + 1, ~0U, 0);
    _exit(body());
  }
  close(ends[1]);
  pipe_ = ends[0];
}

void ChildJob::take(const std::string& line) {
  const Message message = decode(line);
  switch (message.event) {
    case Event::kResumed:
      told_.resumed = message.step;
      break;
    case Event::kCommitted:
      told_.committed.push_back(message.step);
      break;
    case Event::kFailed:
      told_.failed.push_back(message);
      break;
    case Event::kEnded:
      told_.ended = message.text;
      break;
  }
}

bool ChildJob::listen(std::chrono::milliseconds patience) {
  pollfd waiting{.fd = pipe_, .events = POLLIN, .revents = 0};
  if (poll(&waiting, 1, static_cast<int>(patience.count())) != 1) return false;
  std::array<char, 4096> buffer{};
  const ssize_t got = read(pipe_, buffer.data(), buffer.size());
  if (got <= 0) return false;
  partial_.append(buffer.data(), static_cast<size_t>(got));
  for (size_t end = partial_.find('\n'); end != std::string::npos; end = partial_.find('\n')) {
    take(partial_.substr(0, end));
    partial_.erase(0, end + 1);
  }
  return true;
}

bool ChildJob::wait_for(const std::function<bool(const Told&)>& wanted) {
  while (!wanted(told_)) {
    if (!listen(kPatience)) return false;
  }
  return true;
}

void ChildJob::send(int signal) const {
  if (!status_) kill(id_, signal);
}

void ChildJob::look() {
  int status = 0;
  if (status_ || waitpid(id_, &status, WUNTRACED | WNOHANG) != id_) return;
  if (WIFSTOPPED(status)) {
    stopped_ = true;
  } else {
    status_ = status;
  }
}

bool ChildJob::has_stopped() {
  look();
  return stopped_;
}

bool ChildJob::has_ended() {
  look();
  return status_.has_value();
}

bool ChildJob::wait_until_stopped() {
  const auto deadline = Clock::now() + kPatience;
  while (!has_stopped() && !status_ && Clock::now() < deadline) {
    listen(std::chrono::milliseconds(1));
  }
  return stopped_;
}

int ChildJob::wait() {
  const auto deadline = Clock::now() + kPatience;
  while (Clock::now() < deadline && listen(kPatience)) {
  }
  if (!status_) {
    if (Clock::now() >= deadline) send(SIGKILL);
    int status = 0;
    waitpid(id_, &status, 0);
    status_ = status;
    while (listen(std::chrono::milliseconds(0))) {
    }
  }
  return *status_;
}

int exit_code(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

bool was_killed(int status) {
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

}  // namespace tessera::faults
