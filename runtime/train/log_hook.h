#pragma once

#include <filesystem>
#include <functional>
#include <optional>

#include "runtime/monitor/append_file.h"
#include "runtime/monitor/event_file.h"
#include "runtime/monitor/gate_log.h"
#include "runtime/train/hook.h"
#include "runtime/train/report_line.h"

namespace tessera {

/// Writes every step to metrics.jsonl and TensorBoard, what some steps measure of gates and experts
/// to files of their own (docs/report.md), and to people: on a terminal one line that is redrawn,
/// with a bar; elsewhere one line each `log_every` steps. For rank 0.
class LogHook final : public Hook {
 public:
  struct Options {
    std::filesystem::path run_directory;
    int64_t log_every = 10;
    bool terminal = false;  ///< standard error is one
    int ranks = 1;
    double peak_tflops = 0;  ///< of one device; 0: unknown
    std::function<double(const StepPlan&)> flops_per_token;
    bool tensorboard = true;
    int64_t experts_every = 100;  ///< steps between lines of experts.jsonl; 0: none
    int64_t heat_map_every = 1;   ///< steps; in between only those around a change of a budget
  };
  /// Opens RUN/metrics.jsonl for appending. Throws when it cannot; trouble with files is told once
  /// when it comes later, or is with other files.
  explicit LogHook(Options options);
  ~LogHook() override;
  LogHook(const LogHook&) = delete;
  LogHook& operator=(const LogHook&) = delete;

  std::string name() const override { return "log"; }
  void observe(const StepReport& report) override;

 private:
  void write_events(int64_t step, const std::string& line);
  void write_experts(const StepReport& report);
  void print(const StepReport& report, const std::string& line);

  Options options_;
  AppendFile metrics_;
  GateLog gates_;
  AppendFile experts_;
  std::optional<EventFile> events_;  ///< from the first step of this start on
  bool line_open_ = false;
};

}  // namespace tessera
