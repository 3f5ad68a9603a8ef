#pragma once

#include <cstdint>
#include <vector>

#include "parallel/flight_map.h"
#include "runtime/watch/watch_limits.h"

namespace tessera {

/// How long a rank's steps take, and from that how long what it is doing now may take.
class StepTimes {
 public:
  explicit StepTimes(const WatchLimits& limits) : limits_(limits) {}

  /// Looks at the rank: a step that is new is counted.
  void observe(const FlightState& state);
  /// Seconds that the section of `state` may take. A step: the larger of limits.step and five times
  /// the 99th percentile of the last steps; limits.setup until five were seen.
  double limit(const FlightState& state) const;

 private:
  WatchLimits limits_;
  int64_t steps_ = 0;
  std::vector<double> seconds_;  // of the last kKept steps, a ring
};

}  // namespace tessera
