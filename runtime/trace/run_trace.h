#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "parallel/clock_offset.h"
#include "parallel/process_mesh.h"
#include "runtime/trace/timeline.h"
#include "runtime/trace/trace_parts.h"
#include "runtime/trace/trace_text.h"

namespace tessera {

/// Which steps a run traces.
struct TraceSteps {
  int64_t first = 1;
  int64_t last = 0;            ///< less than first: none
  bool of_this_start = false;  ///< counted from where this start of the run begins

  bool any() const { return first <= last; }
};

/// Steps 11 to 20 of this start, which leaves out the first, slower ones.
inline constexpr TraceSteps kUsualTrace{.first = 11, .last = 20, .of_this_start = true};

/// "11:20", steps of the run, or "10", the first ten of this start. Throws kUsage.
TraceSteps parse_trace_steps(const std::string& text);

/// Traces some steps of a run: a part by every rank in RUN/trace/, joined by rank 0 to one file
/// when they fit in a page (docs/trace.md). Trouble with its files is told once, and ends the trace
/// of that rank, never the run. Profilers of NVIDIA see every step (nvtx_ranges.h). All ranks call
/// before_step and finish at the same points.
class RunTrace {
 public:
  /// What viewers in a browser still open.
  static constexpr int64_t kLargestPage = int64_t{256} << 20;

  /// `mesh` must outlive it.
  RunTrace(const ProcessMesh& mesh, std::filesystem::path run_directory, const TraceSteps& steps,
           int64_t largest_page = kLargestPage);
  /// Of a run that has failed: writes what there is. Tells nobody.
  ~RunTrace();
  RunTrace(const RunTrace&) = delete;
  RunTrace& operator=(const RunTrace&) = delete;

  /// What `on_stage` is told is traced, too. The result may be called while this lives.
  std::function<void(const char*)> watch(std::function<void(const char*)> on_stage);

  /// Between two steps: begins the trace, writes what there is, or ends it.
  void before_step(int64_t step);
  /// After the last step: ends the trace when it has not ended.
  void finish();

 private:
  enum class State : uint8_t { kWaiting, kTracing, kOver };

  /// What a rank tells the others at the end.
  struct Part {
    int64_t bytes = 0;  ///< 0: it has none
    int64_t dropped = 0;
    int64_t drift = 0;  ///< of its clock against that of rank 0
    double waits = -1;  ///< share of its steps; negative: no step
  };

  void place(int64_t step);
  void begin();
  void write();
  void end_timeline();
  void count_waits();
  void end();
  /// Does `work` on files; when it fails, this rank writes no more.
  void try_files(const std::function<void()>& work);
  std::vector<Part> gather(const Part& own) const;
  void tell_end(const std::vector<Part>& parts) const;
  std::string name_of_rank() const;

  const ProcessMesh& mesh_;
  std::filesystem::path run_directory_;
  std::filesystem::path folder_;
  TraceSteps steps_;
  int64_t largest_page_;
  State state_;
  bool placed_ = false;
  int64_t next_step_ = 0;
  std::unique_ptr<FlightObserver> nvtx_;  ///< in every step, whether it is traced or not
  ClockOffset offset_;
  StageTrack stages_;
  std::unique_ptr<Timeline> timeline_;
  std::optional<TraceText> text_;
  std::optional<TracePart> part_;
  std::string lines_;
  int64_t bytes_ = 0;
  int64_t in_steps_ = 0;  ///< nanoseconds
  int64_t waited_ = 0;    ///< of them
};

}  // namespace tessera
