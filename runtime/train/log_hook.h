#pragma once

#include <filesystem>
#include <fstream>
#include <functional>

#include "runtime/train/hook.h"
#include "runtime/train/report_line.h"

namespace tessera {

/// Writes every step to metrics.jsonl, and to people: on a terminal one line that is redrawn, with
/// a bar; elsewhere one line each `log_every` steps. For rank 0.
class LogHook final : public Hook {
 public:
  struct Options {
    std::filesystem::path run_directory;
    int64_t log_every = 10;
    bool terminal = false;  ///< standard error is one
    int ranks = 1;
    double peak_tflops = 0;  ///< of one device; 0: unknown
    std::function<double(const StepPlan&)> flops_per_token;
  };
  /// Opens RUN/metrics.jsonl for appending. Throws when it cannot.
  explicit LogHook(Options options);
  ~LogHook() override;
  LogHook(const LogHook&) = delete;
  LogHook& operator=(const LogHook&) = delete;

  std::string name() const override { return "log"; }
  void observe(const StepReport& report) override;

 private:
  void print(const StepReport& report, const std::string& line);

  Options options_;
  std::ofstream metrics_;
  bool line_open_ = false;
};

}  // namespace tessera
