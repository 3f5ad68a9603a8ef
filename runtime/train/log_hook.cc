#include "runtime/train/log_hook.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

#include "kernels/core/log.h"

namespace tessera {

namespace {

constexpr int64_t kBarWidth = 20;

std::string bar(int64_t done, int64_t all) {
  const int64_t full = all > 0 ? done * kBarWidth / all : kBarWidth;
  return concat("[", std::string(static_cast<size_t>(full), '#'),
                std::string(static_cast<size_t>(kBarWidth - full), '.'), "] ");
}

size_t terminal_columns() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

double resident_gib() {
  std::ifstream statm("/proc/self/statm");
  int64_t pages = 0;
  int64_t resident = 0;
  statm >> pages >> resident;
  return static_cast<double>(resident * sysconf(_SC_PAGESIZE)) / (1 << 30);
}

double host_gib() {
  return static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE)) /
         (1 << 30);
}

}  // namespace

LogHook::LogHook(Options options) : options_(std::move(options)) {
  const std::filesystem::path path = options_.run_directory / "metrics.jsonl";
  metrics_.open(path, std::ios::app);
  CHECK(metrics_.is_open(), "cannot open ", path.string(),
        " for writing; check that run_dir is writable");
}

LogHook::~LogHook() {
  if (line_open_) std::fputc('\n', stderr);
}

void LogHook::observe(const StepReport& report) {
  const double gib = resident_gib();
  const RateBasis basis{.flops_per_token = options_.flops_per_token(report.plan),
                        .ranks = options_.ranks,
                        .peak_tflops = options_.peak_tflops,
                        .memory_gib = gib,
                        .memory_share = gib / host_gib()};
  metrics_ << report_json(report, basis) << "\n" << std::flush;
  print(report, report_line(report, basis));
}

void LogHook::print(const StepReport& report, const std::string& line) {
  const int64_t step = report.plan.step;
  const bool last = step == report.steps;
  if (!options_.terminal) {
    const bool due = step % options_.log_every == 0 || step == 1 || last;
    if (due || report.validation_loss >= 0) log_line(line);
    return;
  }
  // Cut to the width, or the next carriage return would redraw only the last of several rows.
  const std::string shown = (bar(step, report.steps) + line).substr(0, terminal_columns() - 1);
  std::fprintf(stderr, "\r\033[K%s", shown.c_str());
  line_open_ = !last && report.validation_loss < 0;
  if (!line_open_) std::fputc('\n', stderr);
  std::fflush(stderr);
}

}  // namespace tessera
