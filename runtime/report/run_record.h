#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "runtime/report/gate_table.h"
#include "runtime/report/map_files.h"
#include "runtime/report/run_log.h"
#include "runtime/report/step_table.h"
#include "runtime/report/warnings.h"

namespace tessera {

/// All that a run directory says of its run, also while the run goes on, and whatever is missing or
/// damaged.
struct RunRecord {
  std::filesystem::path directory;
  StepTable steps;
  GateTable gates;
  PageMaps maps;
  std::vector<RunEvent> events;  ///< of the log and the changes of gates, by step
  std::string config;            ///< config.resolved.textproto; empty when it cannot be read
  int64_t first_moe_layer = 0;
  std::string status;             ///< in words: finished, at step N of M, ...
  std::vector<std::string> gaps;  ///< files that are missing or damaged, in words
  std::vector<RunWarning> warnings;
};

/// Throws kUsage when `directory` is no run directory, that is has neither metrics nor a resolved
/// configuration.
RunRecord read_run(const std::filesystem::path& directory);

}  // namespace tessera
