#include "runtime/watch/rank_report.h"

#include <algorithm>
#include <optional>

#include "parallel/flight_recorder.h"

namespace tessera {

RankReport report_of(const FlightMap& map, int64_t now, int64_t records) {
  RankReport report{.rank = map.state.rank, .now = now, .state = map.state};
  // Bounded: the map may be of a process that went astray.
  report.state.host.back() = 0;
  report.state.waits_at.back() = 0;
  const int groups = std::clamp<int>(map.state.groups, 0, FlightMap::kGroups);
  for (int i = 0; i < groups; ++i) {
    report.groups.push_back(map.groups[static_cast<size_t>(i)]);
    report.groups.back().name.back() = 0;
  }
  const int64_t end = std::max<int64_t>(0, map.state.records);
  const int64_t begin = std::max<int64_t>(0, end - std::min(records, FlightMap::kRecords));
  for (int64_t index = begin; index < end; ++index) {
    std::optional<CollectiveRecord> record = read_record(map, index);
    if (!record) continue;
    record->file.back() = 0;
    report.records.push_back(*record);
  }
  return report;
}

}  // namespace tessera
