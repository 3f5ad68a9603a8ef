#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/core/error.h"
#include "runtime/watch/flight_dump.h"
#include "runtime/watch/flight_story.h"
#include "runtime/watch/hang_report.h"
#include "runtime/watch/watch_message.h"
#include "tests/fuzz/input.h"

// Feeds any bytes to what watchers take from the network: frames, reports in them, and what is made
// of several reports. Whole reports are made from the bytes too, so that the diagnosis is reached.
// It must refuse with Error or come to an end.

namespace tessera {
namespace {

int64_t small(Input& input) {
  return input.below(8) - 1;
}

RankReport report_from_few(Input& input, int rank) {
  RankReport report{.rank = rank, .now = input.byte()};
  report.concern = static_cast<Concern>(input.below(5));
  report.lost = input.below(4) == 0;
  report.state.waits_in = small(input);
  report.state.process_state = "RSDTXZt"[input.below(7)];
  report.state.phase = static_cast<Phase>(input.below(kPhases));
  report.state.step = small(input);
  for (int64_t groups = input.below(4); groups > 0; --groups) {
    FlightGroup group;
    group.name[0] = static_cast<char>('a' + input.below(3));
    group.first = static_cast<int32_t>(small(input));
    group.size = static_cast<int32_t>(small(input));
    group.started = small(input);
    group.completed = small(input);
    report.groups.push_back(group);
  }
  for (int64_t records = input.below(6); records > 0; --records) {
    CollectiveRecord record;
    record.index = small(input);
    record.number = small(input);
    record.group = static_cast<int32_t>(small(input));
    record.elements = small(input);
    record.operation = static_cast<Collective>(input.below(kCollectives));
    record.phase = static_cast<Phase>(input.below(kPhases));
    report.records.push_back(record);
  }
  return report;
}

void look_at(const std::vector<RankReport>& reports) {
  const HangReport found = diagnose(reports);
  if (found.kind != HangKind::kNothing && found.sentence.empty()) std::abort();
  (void)where_ranks_are(reports);
  for (const RankReport& report : reports) {
    (void)last_exchanges(report, 4);
    (void)to_json(report);
  }
}

void feed(const uint8_t* data, size_t size) {
  const std::string all(reinterpret_cast<const char*>(data), size);
  std::vector<RankReport> reports;
  try {
    reports.push_back(report_from(all));
  } catch (const Error&) {
  }
  FrameReader reader;
  reader.add(all);
  try {
    while (const auto frame = reader.next()) {
      (void)body_of<HeartbeatBody>(*frame);
      (void)body_of<HelloBody>(*frame);
      reports.push_back(report_from(frame->body));
    }
  } catch (const Error&) {
  }
  Input input{data, size};
  for (int rank = 0; rank < 4; ++rank) reports.push_back(report_from_few(input, rank));
  look_at(reports);
}

}  // namespace
}  // namespace tessera

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  tessera::feed(data, size);
  return 0;
}
