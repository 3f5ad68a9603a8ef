#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "runtime/report/line_file.h"
#include "runtime/train/gate_measure.h"

namespace tessera {

/// A line of gates.jsonl.
struct GateRow {
  int64_t step = 0;
  GateMeasure gate;  ///< without its heat map
};

/// A line of gate_changes.jsonl.
struct GateChange {
  int64_t step = 0;
  int64_t layer = -1;  ///< negative: of the whole run
  std::string what;
  std::string old_value;  ///< as in the file: a number or a text
  std::string new_value;
  std::string reason;
};

/// A line of experts.jsonl.
struct ExpertRow {
  int64_t step = 0;
  int64_t moe_layer = 0;
  std::vector<double> tokens;  ///< of each expert
};

/// What a run measured of gates and experts, by step; as in StepTable the later line is right.
struct GateTable {
  std::vector<GateRow> gates;
  std::vector<GateChange> changes;
  std::vector<ExpertRow> experts;
  LineCount gate_lines;
  LineCount change_lines;
  LineCount expert_lines;
};

GateTable read_gates(const std::filesystem::path& run_directory);

}  // namespace tessera
