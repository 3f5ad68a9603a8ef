#include "runtime/watch/watch_message.h"

#include <algorithm>
#include <cstring>

#include "kernels/core/error.h"

namespace tessera {

namespace {

struct FrameHead {
  uint32_t kind;
  uint32_t bytes;
};

struct ReportHead {
  int64_t now;
  int32_t rank;
  Concern concern;
  int32_t groups;
  int32_t records;
  FlightState state;
};

constexpr uint32_t kMostBytes = sizeof(FlightMap) + sizeof(ReportHead);

}  // namespace

std::optional<Frame> FrameReader::next() {
  FrameHead head{};
  if (bytes_.size() < sizeof head) return std::nullopt;
  std::memcpy(&head, bytes_.data(), sizeof head);
  const bool known = head.kind >= static_cast<uint32_t>(WatchMessage::kHello) &&
                     head.kind <= static_cast<uint32_t>(WatchMessage::kOrder);
  CHECK(known && head.bytes <= kMostBytes, "watcher: a frame of kind ", head.kind, " and ",
        head.bytes, " bytes came, which no rank of this job sends");
  if (bytes_.size() < sizeof head + head.bytes) return std::nullopt;
  Frame frame{static_cast<WatchMessage>(head.kind), bytes_.substr(sizeof head, head.bytes)};
  bytes_.erase(0, sizeof head + head.bytes);
  return frame;
}

std::string frame(WatchMessage kind, std::string_view body) {
  const FrameHead head{static_cast<uint32_t>(kind), static_cast<uint32_t>(body.size())};
  std::string bytes(reinterpret_cast<const char*>(&head), sizeof head);
  return bytes.append(body);
}

std::string bytes_of(const RankReport& report) {
  const ReportHead head{.now = report.now,
                        .rank = report.rank,
                        .concern = report.concern,
                        .groups = static_cast<int32_t>(report.groups.size()),
                        .records = static_cast<int32_t>(report.records.size()),
                        .state = report.state};
  std::string bytes(reinterpret_cast<const char*>(&head), sizeof head);
  const auto append = [&](const auto& parts) {
    bytes.append(reinterpret_cast<const char*>(parts.data()), parts.size() * sizeof parts[0]);
  };
  append(report.groups);
  append(report.records);
  return bytes;
}

RankReport report_from(std::string_view bytes) {
  ReportHead head{};
  CHECK(bytes.size() >= sizeof head, "watcher: a report has ", bytes.size(), " bytes, expected ",
        sizeof head, " at least");
  std::memcpy(&head, bytes.data(), sizeof head);
  bytes.remove_prefix(sizeof head);
  const bool bounded = head.groups >= 0 && head.groups <= FlightMap::kGroups && head.records >= 0 &&
                       head.records <= FlightMap::kRecords;
  CHECK(bounded, "watcher: a report has ", head.groups, " groups and ", head.records,
        " records, expected ", FlightMap::kGroups, " and ", FlightMap::kRecords, " at most");
  RankReport report{
      .rank = head.rank, .concern = head.concern, .now = head.now, .state = head.state};
  report.groups.resize(static_cast<size_t>(head.groups));
  report.records.resize(static_cast<size_t>(head.records));
  const size_t groups = report.groups.size() * sizeof(FlightGroup);
  const size_t records = report.records.size() * sizeof(CollectiveRecord);
  CHECK(bytes.size() == groups + records, "watcher: a report has ", bytes.size(),
        " bytes of groups and records, expected ", groups + records);
  std::memcpy(report.groups.data(), bytes.data(), groups);
  std::memcpy(report.records.data(), bytes.data() + groups, records);
  const bool sane = sound(report.state) &&
                    std::all_of(report.records.begin(), report.records.end(),
                                [](const CollectiveRecord& record) { return sound(record); }) &&
                    std::all_of(report.groups.begin(), report.groups.end(),
                                [](const FlightGroup& group) { return group.name.back() == 0; });
  CHECK(sane, "watcher: a report has values that no rank sends");
  return report;
}

}  // namespace tessera
