#include "runtime/watch/flight_story.h"

#include <algorithm>
#include <iomanip>
#include <map>
#include <sstream>

#include "kernels/core/error.h"
#include "parallel/flight_recorder.h"
#include "runtime/watch/exchange_groups.h"
#include "runtime/watch/process_state.h"

namespace tessera {

namespace {

std::string name_of_group(const RankReport& report, int32_t group) {
  if (group < 0 || group >= static_cast<int32_t>(report.groups.size())) return "?";
  const FlightGroup& entry = report.groups[static_cast<size_t>(group)];
  const std::string name = entry.name.data();
  return name == "world" ? name : concat(name, " of rank ", entry.first);
}

std::string activity(const RankReport& report) {
  const FlightState& state = report.state;
  std::ostringstream out;
  if (state.step >= 0 && in_step(state.phase)) out << "step " << state.step << " ";
  out << name_of(state.phase);
  if (state.layer >= 0 && in_step(state.phase)) out << " layer " << state.layer;
  out << ", process " << to_text(static_cast<char>(state.process_state));
  const CollectiveRecord* record = waiting_record(report);
  if (record != nullptr) {
    out << ", in " << name_of_group(report, record->group) << " #" << record->number << " "
        << describe(*record);
  } else {
    out << ", in no exchange";
  }
  return out.str();
}

}  // namespace

std::vector<RankReport> read_flight(const std::filesystem::path& flight) {
  std::vector<RankReport> reports;
  std::error_code trouble;
  for (const auto& entry : std::filesystem::directory_iterator(flight, trouble)) {
    if (!entry.path().filename().string().starts_with("ring-")) continue;
    const FlightFile file(entry.path(), false);
    const FlightState& state = file.map().state;
    RankReport report = report_of(file.map(), state.seen > 0 ? state.seen : state.phase_began);
    if (state.process_state == 'T') report.concern = Concern::kStopped;
    if (state.process_state == 'X') report.concern = Concern::kGone;
    reports.push_back(std::move(report));
  }
  std::sort(reports.begin(), reports.end(),
            [](const RankReport& a, const RankReport& b) { return a.rank < b.rank; });
  return reports;
}

std::string where_ranks_are(std::span<const RankReport> reports) {
  std::map<std::string, std::vector<int>> ranks;
  for (const RankReport& report : reports) ranks[activity(report)].push_back(report.rank);
  std::string text;
  for (const auto& [what, who] : ranks) text += concat(list_ranks(who), ": ", what, "\n");
  return text;
}

std::string last_exchanges(const RankReport& report, int64_t count) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(3);
  const int64_t all = static_cast<int64_t>(report.records.size());
  for (int64_t i = std::max<int64_t>(0, all - count); i < all; ++i) {
    const CollectiveRecord& one = report.records[static_cast<size_t>(i)];
    out << std::setw(10) << report.since(one.started) << " s ago  step " << one.step << " "
        << name_of(one.phase);
    if (one.layer >= 0) out << " layer " << one.layer;
    out << "  " << name_of_group(report, one.group) << " #" << one.number << " " << describe(one);
    if (one.completed > 0) {
      out << ", took " << 1e-6 * static_cast<double>(one.completed - one.started) << " ms\n";
    } else {
      out << (one.index == report.state.waits_in ? ", waits in it\n" : ", not waited for yet\n");
    }
  }
  return out.str();
}

}  // namespace tessera
