#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "runtime/report/line_file.h"

namespace tessera {

/// A start of a run that was seen in its metrics: it did steps again that an earlier one had done.
struct Repetition {
  int64_t first_step = 0;
  int64_t repeated = 0;  ///< steps that the earlier start had done beyond its checkpoint
};

/// metrics.jsonl as columns. Where a step is there twice the later line is right, and what the
/// earlier start had done from that step on is forgotten.
struct StepTable {
  std::vector<int64_t> steps;       ///< ascending
  std::vector<std::string> stages;  ///< of each row
  /// Every field that is a number in some line; NaN where it is not.
  std::map<std::string, std::vector<double>> columns;
  std::vector<Repetition> repetitions;
  int64_t planned_steps = 0;  ///< of the whole run, as the last line says
  LineCount lines;

  size_t rows() const { return steps.size(); }
  /// Empty when no line has such a field.
  const std::vector<double>& column(const std::string& name) const;
};

StepTable read_steps(const std::filesystem::path& path);

}  // namespace tessera
