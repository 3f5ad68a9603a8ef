#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/flight_map.h"

namespace tessera {

/// What is wrong with a rank, as its watcher sees it.
enum class Concern : int32_t {
  kNone,
  kSlow,     ///< what it is doing takes longer than its limit
  kStopped,  ///< its process is stopped
  kGone,     ///< its process ended without a word
  kFailed,   ///< it met an error, and will end the job
};

/// What is known of a rank when the job is looked at.
struct RankReport {
  int rank = 0;
  Concern concern = Concern::kNone;
  double silence = 0;  ///< seconds since its watcher was heard
  bool lost = false;   ///< that is too long
  int64_t now = 0;     ///< the clock of its host when this was written
  FlightState state = {};
  std::vector<FlightGroup> groups = {};
  std::vector<CollectiveRecord> records = {};  ///< the last ones, oldest first

  std::string host() const { return state.host.data(); }
  /// Seconds from `when`, a time of its clock, to the report.
  double since(int64_t when) const {
    return 1e-9 * (static_cast<double>(now) - static_cast<double>(when));
  }
};

/// Whether what is written in it can be read as what it is: both may come from anywhere.
bool sound(const CollectiveRecord& record);
bool sound(const FlightState& state);

/// The state, the groups and the newest `records` records of a map, which may be in use. What is
/// not sound is left out.
RankReport report_of(const FlightMap& map, int64_t now, int64_t records = FlightMap::kRecords);

}  // namespace tessera
