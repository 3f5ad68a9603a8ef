#include "runtime/report/run_record.h"

#include <algorithm>
#include <exception>

#include "kernels/core/error.h"
#include "runtime/config/config.h"
#include "runtime/config/train.pb.h"

namespace tessera {

namespace {

namespace fs = std::filesystem;

constexpr int64_t kMapBytes = 4 << 20;  // of heat maps in a page, before they become text
constexpr size_t kMostEvents = 1500;    // in a page
constexpr size_t kMostSaves = 200;      // of these

void read_config(RunRecord& run) {
  const fs::path path = run.directory / "config.resolved.textproto";
  run.config = read_text(path, 1 << 20);
  if (run.config.empty()) {
    run.gaps.emplace_back("config.resolved.textproto is missing or empty");
    return;
  }
  try {
    const TrainConfig config = parse_train_config(run.config, path.string());
    run.first_moe_layer = config.model().moe().dense_layers();
  } catch (const std::exception& error) {
    run.gaps.push_back(concat(
        "config.resolved.textproto is not understood; layers with experts count from 0 here: ",
        error.what()));
  }
}

void tell_gap(const char* name, const LineCount& count, std::vector<std::string>& gaps) {
  if (count.damaged == 0) return;
  gaps.push_back(concat(name, ": ", count.damaged, " of ", count.lines,
                        count.damaged == 1 ? " lines is" : " lines are", " damaged and left out"));
}

void tell_gaps(RunRecord& run) {
  if (!run.steps.lines.exists) run.gaps.emplace_back("metrics.jsonl is missing");
  if (run.steps.lines.exists && run.steps.rows() == 0) {
    run.gaps.emplace_back("metrics.jsonl has no step");
  }
  tell_gap("metrics.jsonl", run.steps.lines, run.gaps);
  tell_gap("gates.jsonl", run.gates.gate_lines, run.gaps);
  tell_gap("gate_changes.jsonl", run.gates.change_lines, run.gaps);
  tell_gap("experts.jsonl", run.gates.expert_lines, run.gaps);
  if (!fs::exists(run.directory / "log.txt")) {
    run.gaps.emplace_back("log.txt is missing: the timeline lacks starts, saves and warnings");
  }
  if (run.maps.damaged > 0) {
    run.gaps.push_back(concat("heatmaps: ", run.maps.damaged, " files are damaged and left out"));
  }
  int64_t holes = 0;
  for (size_t i = 1; i < run.steps.rows(); ++i) {
    holes += run.steps.steps[i] - run.steps.steps[i - 1] - 1;
  }
  if (holes > 0) run.gaps.push_back(concat("metrics.jsonl lacks ", holes, " steps in between"));
}

void add_changes(RunRecord& run) {
  for (const GateChange& change : run.gates.changes) {
    run.events.push_back(
        {.kind = RunEvent::Kind::kChange,
         .step = change.step,
         .clock = {},
         .text =
             concat(change.layer < 0 ? "" : concat("layer ", change.layer, ": "), change.what,
                    " from ", change.old_value, " to ", change.new_value, ", ", change.reason)});
  }
  for (const Repetition& again : run.steps.repetitions) {
    run.events.push_back(
        {.kind = RunEvent::Kind::kResume,
         .step = again.first_step,
         .clock = {},
         .text = concat("from here on ", again.repeated,
                        again.repeated == 1 ? " step was" : " steps were",
                        " done again: an earlier start had ended without a save of them")});
  }
  std::stable_sort(run.events.begin(), run.events.end(),
                   [](const RunEvent& a, const RunEvent& b) { return a.step < b.step; });
}

// Saves are the least of it, and of them old ones; then whatever is oldest.
void thin_events(std::vector<RunEvent>& events) {
  size_t saves = 0;
  std::vector<RunEvent> kept;
  for (auto event = events.rbegin(); event != events.rend(); ++event) {
    if (event->kind == RunEvent::Kind::kSave && ++saves > kMostSaves) continue;
    if (kept.size() < kMostEvents) kept.push_back(std::move(*event));
  }
  std::reverse(kept.begin(), kept.end());
  events = std::move(kept);
}

std::string status_of(const RunRecord& run) {
  if (run.steps.rows() == 0) return "no step is done yet";
  const int64_t step = run.steps.steps.back();
  const int64_t planned = run.steps.planned_steps;
  if (step >= planned) return concat("finished, ", step, " steps");
  const std::string at = concat("at step ", step, " of ", planned);
  const auto last = std::find_if(run.events.rbegin(), run.events.rend(), [](const RunEvent& e) {
    return e.kind != RunEvent::Kind::kSave && e.kind != RunEvent::Kind::kChange;
  });
  if (last != run.events.rend() && last->kind == RunEvent::Kind::kStop) {
    return at + ", stopped when it was asked to";
  }
  return at;
}

void look_for_flight_records(RunRecord& run) {
  std::error_code none;
  const fs::path flight = run.directory / "flight" / "hang.txt";
  if (!fs::exists(flight, none)) return;
  run.warnings.push_back(
      {RunWarning::Level::kBad, concat("the last start hung or crashed: tessera flight ",
                                       run.directory.string(), " explains it")});
}

}  // namespace

RunRecord read_run(const fs::path& directory) {
  RunRecord run;
  run.directory = directory;
  std::error_code none;
  if (!fs::is_regular_file(directory / "metrics.jsonl", none) &&
      !fs::is_regular_file(directory / "config.resolved.textproto", none)) {
    throw Error(ExitCode::kUsage, concat(directory.string(),
                                         " is no run directory: it has no metrics.jsonl; name that "
                                         "of a run, as run_dir in its configuration"));
  }
  read_config(run);
  run.steps = read_steps(directory / "metrics.jsonl");
  run.gates = read_gates(directory);
  std::vector<int64_t> changed;
  for (const GateChange& change : run.gates.changes) changed.push_back(change.step);
  run.maps = read_maps(directory / "heatmaps", kMapBytes, changed);
  run.events = read_log(directory / "log.txt");
  add_changes(run);
  run.status = status_of(run);
  look_for_flight_records(run);
  for (const auto& some : {warnings_of_steps(run.steps), warnings_of_gates(run.gates),
                           warnings_of_experts(run.gates, run.first_moe_layer)}) {
    run.warnings.insert(run.warnings.end(), some.begin(), some.end());
  }
  std::stable_sort(run.warnings.begin(), run.warnings.end(),
                   [](const RunWarning& a, const RunWarning& b) { return a.level > b.level; });
  tell_gaps(run);
  thin_events(run.events);
  return run;
}

}  // namespace tessera
