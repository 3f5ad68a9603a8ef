#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "runtime/data/data_mixture.h"

namespace tessera {

/// How far a run has come. A resumed run needs no more than this, the tensors and the states of
/// guard and hooks: data, schedules and random numbers are functions of it.
struct RunProgress {
  int64_t step = 0;     ///< finished steps, skipped ones counted
  int64_t updates = 0;  ///< of the optimizer: steps that were applied
  int64_t consumed_tokens = 0;
  int64_t held_steps = 0;  ///< for which the transition has stood still
  DataPosition data = {};  ///< of the training data

  friend bool operator==(const RunProgress&, const RunProgress&) = default;
};

/// As JSON, and back; what came later than the first four may be missing. Throws Error(kBadData) on
/// other text.
std::string to_text(const RunProgress& progress);
RunProgress parse_progress(std::string_view text);

}  // namespace tessera
