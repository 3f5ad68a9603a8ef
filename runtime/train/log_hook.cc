#include "runtime/train/log_hook.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
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

double seconds_since_1970() {
  const std::chrono::duration<double> since = std::chrono::system_clock::now().time_since_epoch();
  return since.count();
}

// Range e of the histogram is expert e.
Histogram experts_of(const std::vector<int64_t>& tokens) {
  Histogram histogram;
  for (const int64_t count : tokens) {
    histogram.limits.push_back(static_cast<double>(histogram.limits.size()) + 1);
    histogram.counts.push_back(static_cast<double>(count));
  }
  return histogram;
}

}  // namespace

LogHook::LogHook(Options options)
    : options_(std::move(options)),
      metrics_(options_.run_directory / "metrics.jsonl", AppendFile::Kind::kLines),
      gates_(options_.run_directory),
      experts_(options_.run_directory / "experts.jsonl", AppendFile::Kind::kLines) {
  metrics_.open();
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
                        .memory_share = gib / host_gib(),
                        .time = seconds_since_1970()};
  const std::string line = report_json(report, basis);
  metrics_.append(line + "\n");
  if (options_.tensorboard) write_events(report.plan.step, line);
  write_experts(report);
  gates_.add(
      {.step = report.plan.step,
       .gates = report.gates,
       .maps_due = options_.heat_map_every > 0 && report.plan.step % options_.heat_map_every == 0,
       .settled = report.plan.stage == Stage::kTuning},
      events_ ? &*events_ : nullptr);
  print(report, report_line(report, basis));
}

void LogHook::write_events(int64_t step, const std::string& line) {
  if (!events_) events_.emplace(options_.run_directory / "tensorboard", step);
  events_->add_scalars(step, scalars_of(line));
}

void LogHook::write_experts(const StepReport& report) {
  const int64_t step = report.plan.step;
  const bool due = options_.experts_every > 0 &&
                   (step % options_.experts_every == 0 || step == 1 || step == report.steps);
  if (!due || report.expert_load.layer_tokens.empty()) return;
  std::string lines;
  int64_t layer = 0;
  for (const std::vector<int64_t>& tokens : report.expert_load.layer_tokens) {
    const nlohmann::ordered_json line{{"step", step}, {"moe_layer", layer}, {"tokens", tokens}};
    lines += line.dump() + "\n";
    if (events_)
      events_->add_histogram(step, concat("expert_tokens/moe-layer-", layer), experts_of(tokens));
    ++layer;
  }
  experts_.append(lines);
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
