#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "runtime/watch/rank_report.h"

namespace tessera {

// What `tessera flight` tells of the files that a run left in its flight directory.

/// The records of all ranks that are there, as of when their watchers looked last. Throws kBadData
/// for a file of another version.
std::vector<RankReport> read_flight(const std::filesystem::path& flight);

/// One line for each thing that ranks are at: which ranks, and the exchange that they wait in.
std::string where_ranks_are(std::span<const RankReport> reports);

/// The newest `count` exchanges of a rank, a line each, oldest first.
std::string last_exchanges(const RankReport& report, int64_t count);

}  // namespace tessera
