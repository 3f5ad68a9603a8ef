#include "runtime/data/progress.h"

#include <unistd.h>

#include <algorithm>
#include <iomanip>
#include <sstream>
#include <utility>

namespace tessera {

namespace {

constexpr int kBarWidth = 24;
constexpr std::chrono::milliseconds kTerminalPeriod{100};
constexpr std::chrono::milliseconds kPlainPeriod{10'000};

std::string clock_text(double seconds) {
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  std::ostringstream out;
  out << std::setfill('0');
  if (whole >= 3600) out << whole / 3600 << ':' << std::setw(2);
  out << whole / 60 % 60 << ':' << std::setw(2) << whole % 60;
  return out.str();
}

}  // namespace

std::string progress_text(const std::string& task, int64_t done, int64_t total, double seconds) {
  const double share =
      total > 0 ? std::min(1.0, static_cast<double>(done) / static_cast<double>(total)) : 1.0;
  const int filled = static_cast<int>(share * kBarWidth);
  const double rate = seconds > 0 ? static_cast<double>(done) / seconds : 0;
  std::ostringstream out;
  out << std::fixed << std::setprecision(1) << task << " [" << std::string(filled, '=')
      << (filled < kBarWidth ? ">" : "") << std::string(std::max(0, kBarWidth - filled - 1), ' ')
      << "] " << std::setw(3) << static_cast<int>(share * 100) << "%  "
      << static_cast<double>(done) * 1e-6 << " of " << static_cast<double>(total) * 1e-6 << " MB  "
      << rate * 1e-6 << " MB/s  ";
  if (done >= total) {
    out << clock_text(seconds) << " in all";
  } else {
    out << (rate > 0 ? clock_text(static_cast<double>(total - done) / rate) : "--:--") << " left";
  }
  return out.str();
}

Progress::Progress(std::string task) : Progress(std::move(task), stderr, ::isatty(2) == 1) {}

Progress::Progress(std::string task, std::FILE* out, bool terminal)
    : task_(std::move(task)), out_(out), terminal_(terminal) {}

void Progress::update(int64_t done, int64_t total) {
  if (Clock::now() - drawn_ >= (terminal_ ? kTerminalPeriod : kPlainPeriod)) {
    draw(done, total, /*last=*/false);
  }
}

void Progress::finish(int64_t done) {
  draw(done, done, /*last=*/true);
}

void Progress::draw(int64_t done, int64_t total, bool last) {
  drawn_ = Clock::now();
  const double seconds = std::chrono::duration<double>(drawn_ - start_).count();
  const std::string text = progress_text(task_, done, total, seconds);
  // \r goes to the line's begin, \033[K clears what a longer text left behind.
  const std::string line = terminal_ ? "\r" + text + "\033[K" + (last ? "\n" : "") : text + "\n";
  std::fwrite(line.data(), 1, line.size(), out_);
  std::fflush(out_);
}

}  // namespace tessera
