#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "runtime/monitor/event_file.h"
#include "runtime/train/gate_measure.h"

namespace tessera {

/// One measure as one JSON object without a line break, for gates.jsonl: all but the heat map.
std::string to_json(const GateMeasure& gate, int64_t step);

/// RUN/heatmaps/step-00001000-layer-03-group-00, without ".png" or ".csv".
std::filesystem::path heat_map_path(const std::filesystem::path& run_directory, int64_t step,
                                    const GateMeasure& gate);

/// Writes what was measured of the gates: every measure to RUN/gates.jsonl and TensorBoard, heat
/// maps as pictures and as numbers when they are due, and in pairs around each change of a layer's
/// budget: of the last step that measured before it, and of the first after it. For rank 0.
class GateLog {
 public:
  /// Trouble with its files is told once, here and later.
  explicit GateLog(const std::filesystem::path& run_directory);

  /// What a step measured.
  struct Step {
    int64_t step = 0;
    const std::vector<GateMeasure>& gates;
    bool maps_due = true;
    bool settled = true;  ///< budgets change only when somebody changes them
  };
  /// Does nothing in a step that measures no gate. `events` may be nullptr.
  void add(const Step& step, EventFile* events);

 private:
  void add_events(int64_t step, const GateMeasure& gate, EventFile& events);
  /// Of the step that measured last, by layer and group.
  struct Before {
    int64_t step = 0;
    GateMeasure gate = {};
    bool written = false;  ///< its map
  };
  void add_map(const Step& step, const GateMeasure& gate, EventFile* events);
  void write_map(int64_t step, const GateMeasure& gate, EventFile* events);

  std::filesystem::path run_directory_;
  AppendFile lines_;
  std::map<std::pair<int64_t, int64_t>, Before> before_;
  bool told_ = false;
};

}  // namespace tessera
