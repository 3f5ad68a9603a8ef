#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tests/faults/save_job.h"

namespace tessera::faults {

/// What a job has said so far, over its pipe.
struct Told {
  std::optional<int64_t> resumed;
  std::vector<int64_t> committed;
  std::vector<Message> failed;
  std::string ended;  ///< the sentence of its error
};

/// The environment variable with the path of the pipe, for programs that are not started directly.
constexpr const char* kPipeVariable = "TESSERA_FAULT_PIPE";

/// One message as a line; the lines are short enough for a pipe to take each at once.
std::string encode(const Message& message);
Message decode(const std::string& line);

/// A process that runs a job, or any other program, and says in lines what happens. It is killed
/// when this process dies, and by the destructor.
class ChildJob {
 public:
  /// `ranks` threads of one process run `job`.
  ChildJob(const SaveJob& job, int ranks);
  /// A program that writes its lines to the file descriptor kMessages, or to kPipeVariable.
  explicit ChildJob(const std::vector<std::string>& command);
  ~ChildJob();
  ChildJob(const ChildJob&) = delete;
  ChildJob& operator=(const ChildJob&) = delete;

  static constexpr int kMessages = 3;

  pid_t id() const { return id_; }
  /// Waits until it has said something that fulfils `wanted`; false when it ends before, or after
  /// a minute.
  bool wait_for(const std::function<bool(const Told&)>& wanted);
  /// Waits for the next thing that it says; false when it has ended, or says nothing so long.
  bool listen(std::chrono::milliseconds patience);
  void send(int signal) const;
  /// Whether it has stopped itself, or ended, by now.
  bool has_stopped();
  bool has_ended();
  /// Waits until it has stopped itself; false when it ends instead, or after a minute.
  bool wait_until_stopped();
  /// Reads all that it says until it ends, at most a minute, then kills it. Returns its status as
  /// waitpid gives it.
  int wait();
  const Told& told() const { return told_; }

 private:
  void start(const std::function<int()>& body);
  void take(const std::string& line);
  void look();

  pid_t id_ = -1;
  int pipe_ = -1;
  std::string partial_;
  Told told_;
  bool stopped_ = false;
  std::optional<int> status_;  ///< when it has ended
};

/// The exit code of a child that ended by itself, or -1.
int exit_code(int status);
bool was_killed(int status);

}  // namespace tessera::faults
