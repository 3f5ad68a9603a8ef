#include "runtime/watch/flight_dump.h"

#include <iomanip>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/core/dtype.h"

namespace tessera {

namespace {

using Json = nlohmann::ordered_json;

std::string numbered(const char* name, int rank, const char* ending) {
  std::ostringstream out;
  out << name << std::setw(5) << std::setfill('0') << rank << ending;
  return out.str();
}

Json ago(const RankReport& report, int64_t when) {
  return when == 0 ? Json(nullptr) : Json(report.since(when));
}

}  // namespace

std::filesystem::path ring_file(const std::filesystem::path& flight, int rank) {
  return flight / numbered("ring-", rank, "");
}

std::filesystem::path stacks_file(const std::filesystem::path& flight, int rank) {
  return flight / numbered("stacks-", rank, ".txt");
}

std::filesystem::path dump_file(const std::filesystem::path& flight, int rank) {
  return flight / numbered("rank-", rank, ".json");
}

std::filesystem::path hang_file(const std::filesystem::path& flight) {
  return flight / "hang.txt";
}

std::filesystem::path suspects_file(const std::filesystem::path& flight) {
  return flight / "suspects";
}

std::string to_json(const RankReport& report) {
  const FlightState& state = report.state;
  Json out{{"rank", report.rank},
           {"ranks", state.ranks},
           {"host", state.host.data()},
           {"process", state.process},
           {"process_state", std::string(1, static_cast<char>(state.process_state))},
           {"kernel_function", state.waits_at.data()},
           {"phase", name_of(state.phase)},
           {"phase_seconds", report.since(state.phase_began)},
           {"step", state.step},
           {"layer", state.layer},
           {"steps_done", state.steps},
           {"waits_in", state.waits_in < 0 ? Json(nullptr) : Json(state.waits_in)},
           {"groups", Json::array()},
           {"exchanges", Json::array()}};
  for (const FlightGroup& group : report.groups) {
    out["groups"].push_back({{"name", group.name.data()},
                             {"first_rank", group.first},
                             {"rank", group.rank},
                             {"size", group.size},
                             {"started", group.started},
                             {"last_completed", group.completed}});
  }
  for (const CollectiveRecord& one : report.records) {
    out["exchanges"].push_back(
        {{"index", one.index},
         {"group", one.group},
         {"number", one.number},
         {"operation", name_of(one.operation)},
         {"dtype", name_of(one.dtype)},
         {"elements", one.elements},
         {"sent", one.sent},
         {"received", one.received},
         {"step", one.step},
         {"phase", name_of(one.phase)},
         {"layer", one.layer},
         {"at", std::string(one.file.data()) + ":" + std::to_string(one.line)},
         {"started_ago", ago(report, one.started)},
         {"completed_ago", ago(report, one.completed)}});
  }
  return out.dump(1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace tessera
