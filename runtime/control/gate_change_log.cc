#include "runtime/control/gate_change_log.h"

#include <nlohmann/json.hpp>

#include "kernels/core/log.h"

namespace tessera {

std::string to_json(const GateChange& change) {
  nlohmann::ordered_json json{{"step", change.step},   {"layer", change.layer},
                              {"what", "kept_blocks"}, {"old", change.before},
                              {"new", change.after},   {"budget", change.budget}};
  if (change.kept_mass >= 0) json["kept_mass"] = change.kept_mass;
  json["reason"] = change.reason;
  return json.dump();
}

GateChangeLog::GateChangeLog(const std::filesystem::path& run_directory) {
  const std::filesystem::path path = run_directory / "gate_changes.jsonl";
  out_.open(path, std::ios::app);
  if (!out_.is_open()) {
    throw Error(ExitCode::kUsage, concat("cannot open ", path.string(),
                                         " for writing; check that run_dir is writable"));
  }
}

void GateChangeLog::add(const GateChange& change) {
  if (!out_.is_open()) return;
  out_ << to_json(change) << "\n" << std::flush;
  log_line(concat("step ", change.step, ": layer ", change.layer, " keeps ", change.after,
                  " blocks instead of ", change.before, ": ", change.reason));
}

}  // namespace tessera
