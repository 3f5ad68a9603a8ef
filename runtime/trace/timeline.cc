#include "runtime/trace/timeline.h"

#include <algorithm>
#include <array>
#include <string_view>

namespace tessera {

namespace {

constexpr size_t kOpen = 1024;
constexpr size_t kStages = 4096;  // a save has 20 or so

// Nobody works towards these: they end a wait for other ranks, or come at once.
constexpr std::array<std::string_view, 4> kMoments{"snapshot taken", "shard header written",
                                                   "before the vote", "after the vote"};

template <class T>
void push(std::vector<T>& all, const T& one, int64_t& dropped) {
  if (all.size() < all.capacity()) {
    all.push_back(one);
  } else {
    ++dropped;
  }
}

}  // namespace

Timeline::Timeline(FlightRecorder& recorder, size_t spans, size_t exchanges) : recorder_(recorder) {
  events_.spans.reserve(spans);
  events_.exchanges.reserve(exchanges);
  open_.reserve(kOpen);
  const FlightState& state = map().state;
  phase_ = TraceSpan{.kind = TraceSpan::Kind::kPhase,
                     .phase = state.phase,
                     .step = state.step,
                     .begin = monotonic_nanoseconds()};
  recorder_.tell(*this);
}

Timeline::~Timeline() {
  recorder_.forget(*this);
}

void Timeline::observe(FlightEvent event, int64_t time, int64_t index) {
  const FlightState& state = map().state;
  const auto begin = [&](TraceSpan::Kind kind) -> TraceSpan {
    ++moment_;
    return {.kind = kind,
            .phase = state.phase,
            .layer = state.layer,
            .step = state.step,
            .begin = time};
  };
  switch (event) {
    case FlightEvent::kStep:
      end_phase(time);
      end_step(time);
      if (state.step >= 0) step_ = begin(TraceSpan::Kind::kStep);
      break;
    case FlightEvent::kPhase:
      end_phase(time);
      phase_ = begin(TraceSpan::Kind::kPhase);
      break;
    case FlightEvent::kLayer:
      end_layer(time);
      if (state.layer >= 0) layer_ = begin(TraceSpan::Kind::kLayer);
      break;
    case FlightEvent::kStepEnd:
      end_phase(time);
      end_step(time);
      break;
    case FlightEvent::kStart:
      start(index);
      break;
    case FlightEvent::kComplete:
      complete(index);
      break;
    case FlightEvent::kWait:
      wait(time, index);
      break;
    case FlightEvent::kWaitEnd:
      end_wait(time);
      break;
  }
}

void Timeline::add(const TraceSpan& span) {
  push(events_.spans, span, events_.dropped);
}

void Timeline::end_layer(int64_t time) {
  if (!layer_) return;
  layer_->end = time;
  add(*layer_);
  layer_.reset();
}

void Timeline::end_phase(int64_t time) {
  end_layer(time);
  if (!phase_) return;
  phase_->end = time;
  add(*phase_);
  phase_.reset();
}

void Timeline::end_step(int64_t time) {
  if (!step_) return;
  step_->end = time;
  add(*step_);
  step_.reset();
}

Timeline::Open* Timeline::find(int64_t index) {
  const auto found = std::find_if(open_.rbegin(), open_.rend(),
                                  [&](const Open& open) { return open.index == index; });
  return found == open_.rend() ? nullptr : &*found;
}

void Timeline::start(int64_t index) {
  const std::optional<CollectiveRecord> record = read_record(map(), index);
  ++moment_;
  if (!record || record->group < 0) return;
  if (map().groups[static_cast<size_t>(record->group)].size == 1) return;
  push(open_, Open{.index = index, .moment = moment_, .wait_began = 0, .overlapped = false},
       events_.dropped);
}

void Timeline::finish(const Open& open, bool finished) {
  std::optional<CollectiveRecord> record = read_record(map(), open.index);
  if (!record) {
    ++events_.dropped;
    return;
  }
  if (!finished) record->completed = monotonic_nanoseconds();
  push(events_.exchanges,
       TraceExchange{.record = *record,
                     .wait_began = open.wait_began,
                     .overlapped = open.overlapped,
                     .finished = finished},
       events_.dropped);
}

void Timeline::complete(int64_t index) {
  const Open* open = find(index);
  if (open == nullptr) return;  // it began before the trace, or within one rank
  finish(*open, true);
  open_.erase(open_.begin() + (open - open_.data()));
}

void Timeline::wait(int64_t time, int64_t index) {
  Open* open = find(index);
  const bool first = open != nullptr && open->wait_began == 0;
  if (first) {
    open->wait_began = time;
    open->overlapped = open->moment != moment_;
  }
  if (!first || open->overlapped) ++moment_;
  const std::optional<CollectiveRecord> record = read_record(map(), index);
  if (!record || record->group < 0) return;
  if (map().groups[static_cast<size_t>(record->group)].size == 1) return;
  wait_ = TraceSpan{.kind = TraceSpan::Kind::kWait,
                    .phase = map().state.phase,
                    .layer = map().state.layer,
                    .step = map().state.step,
                    .begin = time,
                    .index = index,
                    .number = record->number,
                    .group = record->group,
                    .operation = record->operation};
}

void Timeline::end_wait(int64_t time) {
  if (!wait_) return;
  wait_->end = time;
  // An exchange that blocks waits in its start, too.
  const bool goes_on = !events_.spans.empty() &&
                       events_.spans.back().kind == TraceSpan::Kind::kWait &&
                       events_.spans.back().index == wait_->index;
  if (goes_on) {
    events_.spans.back().end = time;
  } else {
    add(*wait_);
  }
  wait_.reset();
}

void Timeline::close() {
  recorder_.forget(*this);
  const int64_t now = monotonic_nanoseconds();
  end_phase(now);
  end_step(now);
  for (const Open& open : open_) finish(open, false);
  open_.clear();
}

void Timeline::clear() {
  events_.spans.clear();
  events_.exchanges.clear();
}

void StageTrack::start() {
  const std::lock_guard lock(mutex_);
  stages_.reserve(kStages);
  on_ = true;
}

void StageTrack::stop() {
  const std::lock_guard lock(mutex_);
  on_ = false;
}

void StageTrack::reach(const char* stage) {
  const int64_t now = monotonic_nanoseconds();
  const std::lock_guard lock(mutex_);
  if (!on_) return;
  const bool moment = std::find(kMoments.begin(), kMoments.end(), stage) != kMoments.end();
  const int64_t begin = moment || last_ == 0 ? now : last_;
  last_ = now;
  TraceStage* before = stages_.empty() ? nullptr : &stages_.back();
  if (before != nullptr && std::string_view(before->name) == stage && before->end == begin) {
    before->end = now;
    ++before->times;
  } else if (stages_.size() < stages_.capacity()) {
    stages_.push_back({.name = stage, .begin = begin, .end = now});
  }
}

std::vector<TraceStage> StageTrack::take() {
  const std::lock_guard lock(mutex_);
  std::vector<TraceStage> taken(stages_);
  stages_.clear();
  return taken;
}

}  // namespace tessera
