#include "runtime/control/gate_change_log.h"

#include <nlohmann/json.hpp>

#include "kernels/core/log.h"

namespace tessera {

std::string to_json(const KeptBlocksChange& change) {
  nlohmann::ordered_json json{{"step", change.step},   {"layer", change.layer},
                              {"what", "kept_blocks"}, {"old", change.before},
                              {"new", change.after},   {"budget", change.budget}};
  if (change.kept_mass >= 0) json["kept_mass"] = change.kept_mass;
  json["reason"] = change.reason;
  return json.dump();
}

std::string to_json(const GlobalGroupsChange& change) {
  return nlohmann::ordered_json{{"step", change.step},     {"layer", change.layer},
                                {"what", "global_groups"}, {"old", change.before},
                                {"new", change.after},     {"alpha", change.alpha},
                                {"reason", change.reason}}
      .dump();
}

std::string groups_text(std::span<const int32_t> groups) {
  std::string text = groups.size() == 1 ? "group" : "groups";
  for (const int32_t group : groups) text += concat(" ", group);
  return text;
}

GateChangeLog::GateChangeLog(const std::filesystem::path& run_directory) {
  const std::filesystem::path path = run_directory / "gate_changes.jsonl";
  out_.open(path, std::ios::app);
  if (!out_.is_open()) {
    throw Error(ExitCode::kUsage, concat("cannot open ", path.string(),
                                         " for writing; check that run_dir is writable"));
  }
}

void GateChangeLog::write(const std::string& json, const std::string& line) {
  if (!out_.is_open()) return;
  out_ << json << "\n" << std::flush;
  log_line(line);
}

void GateChangeLog::add(const KeptBlocksChange& change) {
  write(to_json(change),
        concat("step ", change.step, ": layer ", change.layer, " keeps ", change.after,
               " blocks instead of ", change.before, ": ", change.reason));
}

void GateChangeLog::add(const GlobalGroupsChange& change) {
  write(to_json(change),
        concat("step ", change.step, ": layer ", change.layer, " has ", groups_text(change.after),
               " global instead of ", groups_text(change.before), ": ", change.reason));
}

}  // namespace tessera
