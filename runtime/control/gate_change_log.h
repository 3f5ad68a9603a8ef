#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

namespace tessera {

/// A change of how many blocks one layer keeps, for people and for reports.
struct KeptBlocksChange {
  int64_t step;  ///< after which it was decided; the next step is the first with it
  int64_t layer;
  int64_t before;  ///< kept blocks
  int64_t after;
  double budget;       ///< now, a multiple of the configuration's
  double kept_mass;    ///< as measured before; negative when it was not
  std::string reason;  ///< a sentence's part: "kept mass 0.91 is below 0.98"
};

/// {"step": 1200, "layer": 3, "what": "kept_blocks", "old": 12, "new": 15, ...}
std::string to_json(const KeptBlocksChange& change);

/// A change of which KV groups of a layer are global. They are numbered as before the change.
struct GlobalGroupsChange {
  int64_t step;  ///< as above
  int64_t layer;
  std::vector<int32_t> before;
  std::vector<int32_t> after;
  std::vector<double> alpha;  ///< of all groups of the layer
  std::string reason;
};

/// "group 5", "groups 0 5".
std::string groups_text(std::span<const int32_t> groups);
/// {"step": 1200, "layer": 3, "what": "global_groups", "old": [0], "new": [5], "alpha": [...], ...}
std::string to_json(const GlobalGroupsChange& change);

/// Appends changes to RUN/gate_changes.jsonl and tells them in the log. For rank 0; others have one
/// that writes nothing.
class GateChangeLog {
 public:
  GateChangeLog() = default;
  /// Throws Error(kUsage) when the file cannot be opened.
  explicit GateChangeLog(const std::filesystem::path& run_directory);

  void add(const KeptBlocksChange& change);
  void add(const GlobalGroupsChange& change);

 private:
  void write(const std::string& json, const std::string& line);

  std::ofstream out_;
};

}  // namespace tessera
