#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace tessera {

/// "reading   [=====>    ]  52%  12.5 of 24.0 MB  110.2 MB/s  0:03 left". 1 MB is 10^6 bytes.
/// The time left assumes the rate so far; "--:--" while there is none.
std::string progress_text(const std::string& task, int64_t done, int64_t total, double seconds);

/// Shows how far a task over bytes is, on standard error: on a terminal one line, redrawn up to
/// ten times a second; elsewhere a plain line every 10 seconds and one at the end.
class Progress {
 public:
  explicit Progress(std::string task);
  Progress(std::string task, std::FILE* out, bool terminal);

  void update(int64_t done, int64_t total);
  /// Draws the final state and ends the line.
  void finish(int64_t done);

 private:
  using Clock = std::chrono::steady_clock;

  void draw(int64_t done, int64_t total, bool last);

  std::string task_;
  std::FILE* out_;
  bool terminal_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point drawn_ = start_;
};

}  // namespace tessera
