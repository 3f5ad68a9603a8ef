#include "runtime/watch/step_times.h"

#include <algorithm>
#include <cmath>

namespace tessera {

namespace {

constexpr int64_t kKept = 512;
constexpr int64_t kWarmup = 5;
constexpr double kSlack = 5;

}  // namespace

void StepTimes::observe(const FlightState& state) {
  if (state.steps == steps_) return;
  steps_ = state.steps;
  const double seconds = 1e-9 * static_cast<double>(state.last_step);
  if (static_cast<int64_t>(seconds_.size()) < kKept) {
    seconds_.push_back(seconds);
  } else {
    seconds_[static_cast<size_t>(steps_ % kKept)] = seconds;
  }
}

double StepTimes::limit(const FlightState& state) const {
  switch (state.phase) {
    case Phase::kSetup:
      return limits_.setup;
    case Phase::kValidation:
      return limits_.validation;
    case Phase::kCheckpoint:
      return limits_.checkpoint;
    case Phase::kBetweenSteps:
    case Phase::kEnd:
      return limits_.between;
    default:
      break;
  }
  if (steps_ < kWarmup) return limits_.setup;
  std::vector<double> sorted = seconds_;
  const auto place = static_cast<size_t>(std::ceil(0.99 * static_cast<double>(sorted.size()))) - 1;
  std::nth_element(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(place),
                   sorted.end());
  return std::max(limits_.step, kSlack * sorted[place]);
}

}  // namespace tessera
