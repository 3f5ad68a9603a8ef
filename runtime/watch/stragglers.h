#pragma once

#include <optional>
#include <string>
#include <vector>

#include "parallel/flight_map.h"

namespace tessera {

/// Finds ranks that are slower than the others: not those whose steps take longer, as a step takes
/// as long on all of them, but those that are busy for longer and wait for less.
class Stragglers {
 public:
  explicit Stragglers(int ranks) : ranks_(static_cast<size_t>(ranks)) {}

  /// The newest state of a rank.
  void observe(int rank, const FlightState& state);
  /// Compares the ranks since the last report, once all of them have done steps; once in a while. A
  /// rank is slow when it was busy per step for longer than the median rank by more than a factor
  /// of 1 / 0.7; in the third such report in a row it is named. One line each, once until it is as
  /// fast as the others again.
  std::vector<std::string> report();

 private:
  struct Rank {
    std::string host = {};
    int64_t steps = 0;
    int64_t busy = 0;
    int64_t reported_steps = 0;
    int64_t reported_busy = 0;
    int slow = 0;  ///< reports in a row
  };

  std::vector<Rank> ranks_;
};

}  // namespace tessera
