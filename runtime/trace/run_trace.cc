#include "runtime/trace/run_trace.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <iomanip>
#include <sstream>
#include <string_view>
#include <system_error>
#include <utility>

#include "kernels/core/log.h"
#include "parallel/agreement.h"
#include "parallel/nvtx_ranges.h"

namespace tessera {

namespace {

namespace fs = std::filesystem;

constexpr size_t kPartValues = 4;

std::optional<int64_t> step_in(std::string_view text) {
  int64_t step = 0;
  const auto [end, trouble] = std::from_chars(text.data(), text.data() + text.size(), step);
  if (trouble != std::errc() || end != text.data() + text.size() || step < 1) return std::nullopt;
  return step;
}

std::string host_name() {
  std::array<char, 256> name{};
  return gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "?";
}

// For rank 0: parts of an earlier trace of these steps, by more ranks, would be joined as well.
void make_folder(const fs::path& folder, int ranks) {
  std::error_code trouble;
  fs::create_directories(folder, trouble);
  if (trouble) {
    throw Error(ExitCode::kUsage, concat("cannot make ", folder.string(), ": ", trouble.message()));
  }
  for (const int rank : ranks_with_parts(folder)) {
    if (rank >= ranks) fs::remove(trace_part(folder, rank), trouble);
  }
}

std::string mebibytes(int64_t bytes) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(1) << static_cast<double>(bytes) / (1 << 20) << " MiB";
  return out.str();
}

// Who waits least is the one that others wait for.
std::string describe_waits(std::vector<std::pair<double, size_t>> waits) {
  if (waits.size() < 2) return {};
  std::sort(waits.begin(), waits.end());
  const auto percent = [](double share) { return concat(std::lround(100 * share), "%"); };
  return concat("; rank ", waits.front().second, " waits least, ", percent(waits.front().first),
                " of its steps, the median rank ", percent(waits[waits.size() / 2].first));
}

int64_t microseconds(int64_t nanoseconds) {
  return (nanoseconds + 999) / 1000;
}

}  // namespace

TraceSteps parse_trace_steps(const std::string& text) {
  const size_t colon = text.find(':');
  const bool range = colon != std::string::npos;
  const auto first = step_in(range ? std::string_view(text).substr(0, colon) : "1");
  const auto last = step_in(range ? std::string_view(text).substr(colon + 1) : text);
  if (!first || !last || *last < *first) {
    throw Error(ExitCode::kUsage,
                concat("--trace is \"", text,
                       "\", expected FIRST:LAST, steps of the run from 1 on, or N, the first steps "
                       "of this start"));
  }
  return {.first = *first, .last = *last, .of_this_start = !range};
}

RunTrace::RunTrace(const ProcessMesh& mesh, fs::path run_directory, const TraceSteps& steps,
                   int64_t largest_page)
    : mesh_(mesh),
      run_directory_(std::move(run_directory)),
      steps_(steps),
      largest_page_(largest_page),
      state_(steps.any() ? State::kWaiting : State::kOver),
      nvtx_(make_nvtx_ranges(mesh.world().log().recorder())) {}

RunTrace::~RunTrace() {
  if (state_ != State::kTracing) return;
  try {
    end_timeline();
  } catch (const std::exception& error) {
    log_line(concat("warning: the trace is not whole: ", error.what()));
  }
}

std::function<void(const char*)> RunTrace::watch(std::function<void(const char*)> on_stage) {
  if (state_ == State::kOver) return on_stage;
  return [this, on_stage = std::move(on_stage)](const char* stage) {
    stages_.reach(stage);
    if (on_stage) on_stage(stage);
  };
}

void RunTrace::before_step(int64_t step) {
  if (state_ == State::kOver) return;
  next_step_ = step;
  if (!std::exchange(placed_, true)) place(step);
  if (state_ == State::kTracing) {
    step > steps_.last ? end() : write();
  } else if (state_ == State::kWaiting && step >= steps_.first) {
    begin();
  }
}

void RunTrace::finish() {
  if (state_ == State::kTracing) end();
  if (state_ == State::kWaiting) {
    log_once(placed_ ? concat("warning: nothing was traced: this start has ended before step ",
                              steps_.first)
                     : "warning: nothing was traced: the run had no step to do");
  }
  state_ = State::kOver;
}

// `step` is the first of this start.
void RunTrace::place(int64_t step) {
  if (steps_.of_this_start) {
    steps_ = {.first = steps_.first + step - 1, .last = steps_.last + step - 1};
  } else if (step > steps_.last) {
    log_once(concat("warning: nothing is traced: steps ", steps_.first, " to ", steps_.last,
                    " were done before this start, which begins with step ", step));
    state_ = State::kOver;
  } else {
    steps_.first = std::max(steps_.first, step);
  }
}

std::string RunTrace::name_of_rank() const {
  std::string name = concat("rank ", mesh_.world().rank());
  const char* mark = ": ";
  for (const Axis axis : {Axis::kData, Axis::kExpert, Axis::kSequence, Axis::kTensor}) {
    if (mesh_.size(axis) == 1) continue;
    name += concat(mark, name_of(axis), " ", mesh_.coordinate(axis));
    mark = ", ";
  }
  return concat(name, mark, host_name());
}

void RunTrace::try_files(const std::function<void()>& work) {
  const std::optional<Failure> failure = failure_of(work);
  if (!failure) return;
  log_line(
      concat("warning: the trace of this rank is given up, training goes on: ", failure->reason));
  part_.reset();
  timeline_.reset();
  stages_.stop();
}

void RunTrace::begin() {
  Communicator& world = mesh_.world();
  folder_ = trace_folder(run_directory_, steps_.first, steps_.last);
  const std::optional<Failure> failure = first_failure(world, failure_of([&] {
                                                         if (world.rank() > 0) return;
                                                         make_folder(folder_, world.size());
                                                       }));
  if (failure) {
    log_once(concat("warning: nothing is traced, training goes on: ", failure->reason));
    state_ = State::kOver;
    return;
  }
  offset_ = measure_clock_offset(world, monotonic_clock());
  state_ = State::kTracing;
  FlightRecorder& recorder = world.log().recorder();
  text_.emplace(TraceText::Rank{.rank = world.rank(),
                                .name = name_of_rank(),
                                .origin = offset_.origin,
                                .to_root = offset_.to_root},
                recorder.map());
  timeline_ = std::make_unique<Timeline>(recorder);
  stages_.start();
  try_files([&] { part_.emplace(trace_part(folder_, world.rank())); });
}

void RunTrace::count_waits() {
  for (const TraceSpan& span : timeline_->events().spans) {
    if (span.kind == TraceSpan::Kind::kStep) in_steps_ += span.end - span.begin;
    if (span.kind == TraceSpan::Kind::kWait && in_step(span.phase)) {
      waited_ += span.end - span.begin;
    }
  }
}

void RunTrace::write() {
  if (timeline_ == nullptr) return;
  const int64_t begin = monotonic_nanoseconds();
  count_waits();
  lines_.clear();
  text_->append(timeline_->events(), stages_.take(), lines_);
  timeline_->clear();
  try_files([&] { part_->append(lines_); });
  if (timeline_ == nullptr) return;
  bytes_ += static_cast<int64_t>(lines_.size());
  timeline_->add({.kind = TraceSpan::Kind::kTrace,
                  .step = next_step_,
                  .begin = begin,
                  .end = monotonic_nanoseconds()});
}

void RunTrace::end_timeline() {
  if (timeline_ == nullptr) return;
  timeline_->close();
  stages_.stop();
  count_waits();
  lines_.clear();
  text_->append(timeline_->events(), stages_.take(), lines_);
  text_->append_end(timeline_->events().dropped, lines_);
  try_files([&] {
    part_->append(lines_);
    part_->close();
  });
  bytes_ += static_cast<int64_t>(lines_.size());
}

std::vector<RunTrace::Part> RunTrace::gather(const Part& own) const {
  const Communicator& world = mesh_.world();
  std::vector<double> values(kPartValues * static_cast<size_t>(world.size()));
  double* const place = &values[kPartValues * static_cast<size_t>(world.rank())];
  place[0] = static_cast<double>(own.bytes);
  place[1] = static_cast<double>(own.dropped);
  place[2] = static_cast<double>(own.drift);
  place[3] = own.waits;
  mesh_.world().all_reduce_values(values);
  std::vector<Part> parts;
  for (size_t i = 0; i < values.size(); i += kPartValues) {
    parts.push_back({.bytes = static_cast<int64_t>(values[i]),
                     .dropped = static_cast<int64_t>(values[i + 1]),
                     .drift = static_cast<int64_t>(values[i + 2]),
                     .waits = values[i + 3]});
  }
  return parts;
}

void RunTrace::end() {
  state_ = State::kOver;
  end_timeline();
  Communicator& world = mesh_.world();
  const ClockOffset again = measure_clock_offset(world, monotonic_clock());
  Part own{.drift = std::abs(again.to_root - offset_.to_root)};
  if (timeline_ != nullptr) own.bytes = bytes_;
  if (timeline_ != nullptr) own.dropped = timeline_->events().dropped;
  if (in_steps_ > 0) own.waits = static_cast<double>(waited_) / static_cast<double>(in_steps_);
  timeline_.reset();
  // After this every part is whole.
  const std::vector<Part> parts = gather(own);
  if (world.rank() == 0) tell_end(parts);
}

void RunTrace::tell_end(const std::vector<Part>& parts) const {
  Part all;
  std::vector<int> ranks;
  std::vector<std::pair<double, size_t>> waits;
  for (size_t rank = 0; rank < parts.size(); ++rank) {
    if (parts[rank].bytes > 0) ranks.push_back(static_cast<int>(rank));
    if (parts[rank].waits >= 0) waits.emplace_back(parts[rank].waits, rank);
    all.bytes += parts[rank].bytes;
    all.dropped += parts[rank].dropped;
    all.drift = std::max(all.drift, parts[rank].drift);
  }
  const int64_t last = std::min(steps_.last, next_step_);
  std::string facts = concat("traced steps ", steps_.first, " to ", last, ", ");
  if (parts.size() > 1) facts += concat(ranks.size(), " of ", parts.size(), " ranks, ");
  facts += mebibytes(all.bytes) + describe_waits(waits);
  if (offset_.clocks > 1) {
    facts += concat("; the clocks of ", offset_.clocks, " hosts agree within ",
                    microseconds(offset_.worst_error), " us and drifted by ",
                    microseconds(all.drift), " us");
  }
  if (all.dropped > 0) facts += concat("; ", all.dropped, " events are missing");
  const fs::path page = folder_.string() + ".json";
  if (all.bytes > largest_page_) {
    log_line(concat(facts, ", too much for one page: tessera trace ", run_directory_.string(),
                    " --ranks 0-7 joins the parts of some ranks"));
    return;
  }
  const std::optional<Failure> failure = failure_of(
      [&] { (void)join_trace(folder_, ranks, page, concat("{\"tessera\":\"", facts, "\"}")); });
  log_line(failure ? concat("warning: ", facts, ", but not joined: ", failure->reason)
                   : concat(facts, ": open ", page.string(),
                            " in https://ui.perfetto.dev or chrome://tracing"));
}

}  // namespace tessera
