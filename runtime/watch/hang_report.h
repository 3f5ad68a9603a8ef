#pragma once

#include <span>
#include <string>
#include <vector>

#include "runtime/watch/rank_report.h"

namespace tessera {

/// Why a job does not go on.
enum class HangKind : uint8_t {
  kNothing,   ///< it does
  kGone,      ///< a process has ended without a word
  kLost,      ///< no word from a host
  kMismatch,  ///< ranks called different exchanges where all must call the same
  kLocal,     ///< a rank is stopped, or works or waits outside of all exchanges
  kNetwork,   ///< all are in an exchange, which does not end
  kDeadlock,  ///< ranks wait for each other in different exchanges
};

/// "LOCAL HANG", "NETWORK", ...
const char* name_of(HangKind kind);

/// What was found.
struct HangReport {
  HangKind kind = HangKind::kNothing;
  std::vector<int> culprits = {};       ///< ranks
  std::vector<std::string> hosts = {};  ///< theirs
  /// For people: the sentence, and a line that says how we know.
  std::string sentence = {};
  std::string evidence = {};
};

/// Looks for the rank for which the others wait. A rank that waits in an exchange waits for the
/// members of its group that have not entered it, or do not move; the search follows them to one
/// that waits for nobody. What needs no search comes first: processes that are gone, silent hosts,
/// stopped processes, and exchanges that differ between the members of a group.
///
/// Exchanges must agree in operation, dtype and elements; those within a step also in step, phase,
/// layer and place in the source, so that a rank that left one out is found where the next one is
/// of the same kind. When all processes are gone the job was ended from outside: nothing. `reports`
/// has at most one entry for each rank.
HangReport diagnose(std::span<const RankReport> reports);

}  // namespace tessera
