#include "runtime/watch/rank_report.h"

#include <algorithm>
#include <optional>

#include "parallel/flight_recorder.h"

namespace tessera {

bool sound(const CollectiveRecord& record) {
  return static_cast<int>(record.operation) < kCollectives &&
         static_cast<int>(record.phase) < kPhases && record.dtype <= DType::kU8 &&
         record.file.back() == 0;
}

bool sound(const FlightState& state) {
  return static_cast<int>(state.phase) < kPhases && state.host.back() == 0 &&
         state.waits_at.back() == 0;
}

RankReport report_of(const FlightMap& map, int64_t now, int64_t records) {
  RankReport report{.rank = map.state.rank, .now = now, .state = map.state};
  // The map may be of a process that went astray.
  if (!sound(report.state)) report.state = FlightState{};
  const int groups = std::clamp<int>(map.state.groups, 0, FlightMap::kGroups);
  for (int i = 0; i < groups; ++i) {
    report.groups.push_back(map.groups[static_cast<size_t>(i)]);
    report.groups.back().name.back() = 0;
  }
  const int64_t end = std::max<int64_t>(0, map.state.records);
  const int64_t begin = std::max<int64_t>(0, end - std::min(records, FlightMap::kRecords));
  for (int64_t index = begin; index < end; ++index) {
    std::optional<CollectiveRecord> record = read_record(map, index);
    if (!record || !sound(*record)) continue;
    report.records.push_back(*record);
  }
  return report;
}

}  // namespace tessera
