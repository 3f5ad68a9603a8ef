#pragma once

#include <filesystem>
#include <fstream>
#include <string>

namespace tessera {

/// A change of the gates of one layer, for people and for reports.
struct GateChange {
  int64_t step;  ///< after which it was decided; the next step is the first with it
  int64_t layer;
  int64_t before;  ///< kept blocks
  int64_t after;
  double budget;       ///< now, a multiple of the configuration's
  double kept_mass;    ///< as measured before; negative when it was not
  std::string reason;  ///< a sentence's part: "kept mass 0.91 is below 0.98"
};

/// {"step": 1200, "layer": 3, "what": "kept_blocks", "old": 12, "new": 15, ...}
std::string to_json(const GateChange& change);

/// Appends changes to RUN/gate_changes.jsonl and tells them in the log. For rank 0; others have one
/// that writes nothing.
class GateChangeLog {
 public:
  GateChangeLog() = default;
  /// Throws Error(kUsage) when the file cannot be opened.
  explicit GateChangeLog(const std::filesystem::path& run_directory);

  void add(const GateChange& change);

 private:
  std::ofstream out_;
};

}  // namespace tessera
