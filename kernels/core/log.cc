#include "kernels/core/log.h"

#include <array>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <mutex>

namespace tessera {

namespace {

// The second place that lines go to. A process has one standard error and one log file.
std::ofstream& log_file() {
  static std::ofstream file;
  return file;
}

std::mutex& log_mutex() {
  static std::mutex mutex;
  return mutex;
}

}  // namespace

void log_line(const std::string& message) {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  std::array<char, 16> clock{};
  std::strftime(clock.data(), clock.size(), "%H:%M:%S", &local);
  // One call per line, so that lines of several ranks do not mix.
  const std::string line = concat(clock.data(), " ", rank_prefix(), message, "\n");
  const std::lock_guard lock(log_mutex());
  std::fwrite(line.data(), 1, line.size(), stderr);
  if (log_file().is_open()) log_file() << line << std::flush;
}

void log_once(const std::string& message) {
  const std::string prefix = rank_prefix();
  if (prefix.empty() || prefix.starts_with("[rank 0/")) log_line(message);
}

void also_log_to(const std::filesystem::path& path) {
  const std::lock_guard lock(log_mutex());
  log_file().close();
  log_file().open(path, std::ios::app);
  CHECK(log_file().is_open(), "cannot open ", path.string(), " for writing");
}

}  // namespace tessera
