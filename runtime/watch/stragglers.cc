#include "runtime/watch/stragglers.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/error.h"

namespace tessera {

namespace {

constexpr double kSlow = 0.7;  // the median's time / a rank's
constexpr int kReports = 3;

}  // namespace

void Stragglers::observe(int rank, const FlightState& state) {
  Rank& one = ranks_[static_cast<size_t>(rank)];
  one.host = state.host.data();
  one.steps = state.steps;
  one.busy = state.busy;
}

std::vector<std::string> Stragglers::report() {
  std::vector<double> busy;
  for (const Rank& one : ranks_) {
    const int64_t steps = one.steps - one.reported_steps;
    if (steps <= 0) return {};
    busy.push_back(1e-6 * static_cast<double>(one.busy - one.reported_busy) /
                   static_cast<double>(steps));
  }
  std::vector<double> sorted = busy;
  const size_t middle = (sorted.size() - 1) / 2;
  std::nth_element(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(middle),
                   sorted.end());
  const double median = sorted[middle];
  std::vector<std::string> lines;
  for (size_t r = 0; r < ranks_.size(); ++r) {
    Rank& one = ranks_[r];
    one.reported_steps = one.steps;
    one.reported_busy = one.busy;
    one.slow = median < kSlow * busy[r] ? one.slow + 1 : 0;
    if (one.slow != kReports) continue;
    lines.push_back(concat("straggler: rank ", r, " (", one.host, ") is busy for ",
                           std::lround(busy[r]), " ms a step, the median rank for ",
                           std::lround(median), " ms, in ", kReports,
                           " reports in a row; look for other load, heat or a slow clock there"));
  }
  return lines;
}

}  // namespace tessera
