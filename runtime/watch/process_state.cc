#include "runtime/watch/process_state.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

#include "kernels/core/error.h"

namespace tessera {

namespace {

std::string text_of(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

char state_in(std::string_view stat) {
  // The name, in brackets, may have any characters.
  const size_t bracket = stat.rfind(')');
  return bracket != std::string_view::npos && bracket + 2 < stat.size() ? stat[bracket + 2] : 'X';
}

ProcessState process_state(pid_t process) {
  ProcessState found{.state = state_in(text_of(concat("/proc/", process, "/stat")))};
  if (found.state == 'X') return found;
  found.waits_at = text_of(concat("/proc/", process, "/wchan"));
  if (found.waits_at == "0") found.waits_at.clear();
  return found;
}

std::string to_text(char state) {
  switch (state) {
    case 'R':
      return "R (running)";
    case 'S':
      return "S (sleeping)";
    case 'D':
      return "D (waiting for a device or a file system)";
    case 'T':
      return "T (stopped)";
    case 't':
      return "t (held by a debugger)";
    case 'Z':
      return "Z (ended)";
    case 'X':
      return "X (gone)";
    default:
      return std::string(1, state);
  }
}

std::vector<pid_t> threads_of(pid_t process) {
  std::vector<pid_t> threads;
  std::error_code trouble;
  const std::filesystem::path tasks(concat("/proc/", process, "/task"));
  for (const auto& entry : std::filesystem::directory_iterator(tasks, trouble)) {
    const std::string name = entry.path().filename().string();
    pid_t thread = 0;
    std::from_chars(name.data(), name.data() + name.size(), thread);
    if (thread > 0) threads.push_back(thread);
  }
  std::sort(threads.begin(), threads.end());
  return threads;
}

}  // namespace tessera
