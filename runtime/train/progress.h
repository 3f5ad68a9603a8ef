#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace tessera {

/// How far a run has come. A resumed run needs no more than this, the tensors and the states of
/// guard and hooks: data, schedules and random numbers are functions of it.
struct RunProgress {
  int64_t step = 0;              ///< finished steps, skipped ones counted
  int64_t updates = 0;           ///< of the optimizer: steps that were applied
  int64_t consumed_samples = 0;  ///< sequences, over all ranks
  int64_t consumed_tokens = 0;

  friend bool operator==(const RunProgress&, const RunProgress&) = default;
};

/// As JSON, and back. Throws Error(kBadData) on other text.
std::string to_text(const RunProgress& progress);
RunProgress parse_progress(std::string_view text);

}  // namespace tessera
