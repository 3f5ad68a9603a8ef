#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/report/gate_table.h"
#include "runtime/report/step_table.h"

namespace tessera {

/// Something about a run that a person should look at, as a sentence.
struct RunWarning {
  enum class Level : uint8_t { kLook, kBad };
  Level level = Level::kLook;
  std::string text;
  int64_t step = 0;  ///< where to look; 0: nowhere in particular
};

/// What the steps say: loss that is not finite or has risen, validation that has, skipped steps,
/// waiting for data, slower steps, memory that is short or grows. docs/report.md has the limits.
std::vector<RunWarning> warnings_of_steps(const StepTable& steps);

/// What the last measures of gates say: groups that attend almost only to the sink or the window,
/// that lose mass, blocks never or always chosen, tiles that read much for little, budgets that go
/// to and fro.
std::vector<RunWarning> warnings_of_gates(const GateTable& gates);

/// What the last measures of experts say. `first_layer` is the model's layer that has experts
/// first.
std::vector<RunWarning> warnings_of_experts(const GateTable& gates, int64_t first_layer);

}  // namespace tessera
