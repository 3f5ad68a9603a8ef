#include "kernels/core/log.h"

#include <array>
#include <cstdio>
#include <ctime>

namespace tessera {

void log_line(const std::string& message) {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  std::array<char, 16> clock{};
  std::strftime(clock.data(), clock.size(), "%H:%M:%S", &local);
  // One call per line, so that lines of several ranks do not mix.
  const std::string line = concat(clock.data(), " ", rank_prefix(), message, "\n");
  std::fwrite(line.data(), 1, line.size(), stderr);
}

void log_once(const std::string& message) {
  const std::string prefix = rank_prefix();
  if (prefix.empty() || prefix.starts_with("[rank 0/")) log_line(message);
}

}  // namespace tessera
