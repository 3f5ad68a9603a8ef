#pragma once

#include <filesystem>
#include <string>

#include "runtime/watch/rank_report.h"

namespace tessera {

// Files of RUN/flight/. They are removed when a run ends in order.

/// The map of a rank, "ring-00173".
std::filesystem::path ring_file(const std::filesystem::path& flight, int rank);
/// The stacks of its threads, "stacks-00173.txt".
std::filesystem::path stacks_file(const std::filesystem::path& flight, int rank);
/// All that was known of it when the job was ended, "rank-00173.json".
std::filesystem::path dump_file(const std::filesystem::path& flight, int rank);
/// The sentences of the last hang, "hang.txt".
std::filesystem::path hang_file(const std::filesystem::path& flight);
/// The hosts that it was laid to, a line each, for job scripts: "suspects".
std::filesystem::path suspects_file(const std::filesystem::path& flight);

/// The report as JSON, for other tools. Times are seconds before the report; null: not yet.
std::string to_json(const RankReport& report);

}  // namespace tessera
