#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "kernels/core/error.h"
#include "runtime/report/warnings.h"

namespace tessera {

namespace {

using Level = RunWarning::Level;

constexpr int64_t kParts = 20;         // a run is judged by the means of so many parts of it
constexpr double kRise = 0.03;         // nats that a loss must rise to be told
constexpr double kSigmas = 4;          // and standard errors of its mean
constexpr double kDataWait = 0.05;     // share of the time
constexpr double kSlower = 1.3;        // times
constexpr double kMemoryFull = 0.9;    // share of the host's memory
constexpr double kMemoryGrows = 1.25;  // times

std::string number(const char* format, double value) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), format, value);
  return text.data();
}

/// Mean of the finite values of a range of rows, and the standard error of it.
struct Mean {
  double value = std::nan("");
  double error = 0;
};
Mean mean_of(const std::vector<double>& values, size_t begin, size_t end) {
  double sum = 0;
  double squares = 0;
  double count = 0;
  for (size_t i = begin; i < std::min(end, values.size()); ++i) {
    if (!std::isfinite(values[i])) continue;
    sum += values[i];
    squares += values[i] * values[i];
    ++count;
  }
  if (count == 0) return {};
  const double mean = sum / count;
  return {mean, std::sqrt(std::max(0.0, squares / count - mean * mean) / count)};
}

double median_of(std::vector<double> values) {
  values.erase(std::remove_if(values.begin(), values.end(), [](double v) { return !(v >= 0); }),
               values.end());
  if (values.empty()) return std::nan("");
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

void look_for_lost_steps(const StepTable& steps, std::vector<RunWarning>& warnings) {
  const std::vector<double>& skipped = steps.column("skipped");
  const std::vector<double>& loss = steps.column("loss");
  int64_t not_finite = 0;
  int64_t skips = 0;
  int64_t last_not_finite = 0;
  int64_t last_skip = 0;
  for (size_t i = 0; i < steps.rows(); ++i) {
    if (!loss.empty() && !std::isfinite(loss[i])) {
      ++not_finite;
      last_not_finite = steps.steps[i];
    }
    if (!skipped.empty() && skipped[i] > 0) {
      ++skips;
      last_skip = steps.steps[i];
    }
  }
  if (not_finite > 0) {
    warnings.push_back(
        {Level::kBad,
         concat("the loss was not finite in ", not_finite, not_finite == 1 ? " step" : " steps",
                ", the last is step ", last_not_finite),
         last_not_finite});
  }
  if (skips == 0) return;
  const bool many = 100 * skips > std::ssize(steps.steps);
  warnings.push_back(
      {many ? Level::kBad : Level::kLook,
       concat(skips, skips == 1 ? " step was" : " steps were", " skipped of ", steps.rows(),
              " (spikes of the loss or the gradient), the last is step ", last_skip),
       last_skip});
}

// The part of the run with the lowest mean against the last part.
void look_for_rise(const StepTable& steps, std::vector<RunWarning>& warnings) {
  const std::vector<double>& loss = steps.column("loss");
  if (std::ssize(loss) < 5 * kParts) return;
  const auto edge = [&](int64_t part) {
    return static_cast<size_t>(part * std::ssize(loss) / kParts);
  };
  Mean lowest;
  int64_t where = -1;
  for (int64_t part = 0; part < kParts; ++part) {
    const Mean mean = mean_of(loss, edge(part), edge(part + 1));
    if (where >= 0 && !(mean.value < lowest.value)) continue;
    lowest = mean;
    where = part;
  }
  const Mean last = mean_of(loss, edge(kParts - 1), edge(kParts));
  const double rise = last.value - lowest.value;
  if (!(rise > kRise && rise > kSigmas * std::hypot(last.error, lowest.error))) return;
  const int64_t since = steps.steps[edge(where + 1) - 1];
  warnings.push_back({Level::kBad,
                      concat("the loss has risen since step ", since, ": from ",
                             number("%.3f", lowest.value), " to ", number("%.3f", last.value)),
                      since});
}

void look_at_validation(const StepTable& steps, std::vector<RunWarning>& warnings) {
  const std::vector<double>& losses = steps.column("validation_loss");
  double lowest = std::nan("");
  double last = std::nan("");
  int64_t where = 0;
  int64_t later = 0;
  for (size_t i = 0; i < losses.size(); ++i) {
    if (!std::isfinite(losses[i])) continue;
    last = losses[i];
    ++later;
    if (lowest <= last) continue;
    lowest = last;
    where = steps.steps[i];
    later = 0;
  }
  if (later < 2 || !(last - lowest > kRise)) return;
  warnings.push_back({Level::kLook,
                      concat("the validation loss was lowest at step ", where, ", ",
                             number("%.3f", lowest), ", and is ", number("%.3f", last), " now"),
                      where});
}

// In the later half: what it was like at first no longer matters.
void look_at_data(const StepTable& steps, std::vector<RunWarning>& warnings) {
  const std::vector<double>& ms = steps.column("ms");
  const std::vector<double>& wait = steps.column("data_wait");
  double time = 0;
  double waited = 0;
  for (size_t i = steps.rows() / 2; i < std::min(ms.size(), wait.size()); ++i) {
    if (!std::isfinite(ms[i]) || !std::isfinite(wait[i])) continue;
    time += ms[i];
    waited += ms[i] * wait[i];
  }
  if (!(waited > kDataWait * time)) return;
  warnings.push_back({Level::kLook, concat(number("%.0f%%", 100 * waited / time),
                                           " of the time waits for data: is the data set on slow "
                                           "storage, or are the cores taken by others?")});
}

// Within the last stage, whose steps do the same work.
void look_at_speed(const StepTable& steps, std::vector<RunWarning>& warnings) {
  const std::vector<double>& rate = steps.column("tokens_per_second");
  size_t begin = steps.rows();
  while (begin > 0 && steps.stages[begin - 1] == steps.stages.back()) --begin;
  const size_t rows = steps.rows() - begin;
  if (rate.size() < steps.rows() || rows < 60) return;
  const auto at = [&](size_t third) {
    return rate.begin() + static_cast<std::ptrdiff_t>(begin + third * rows / 3);
  };
  const double first = median_of({at(0), at(1)});
  const double last = median_of({at(2), at(3)});
  if (!(first > kSlower * last)) return;
  warnings.push_back(
      {Level::kLook,
       concat("tokens per second have fallen within the stage, by a factor of ",
              number("%.1f", first / last), ": from ", number("%.0f", first), " to ",
              number("%.0f", last), "; another job on the same cores, or a device that is hot?"),
       steps.steps[begin + 2 * rows / 3]});
}

void look_at_memory(const StepTable& steps, std::vector<RunWarning>& warnings) {
  const std::vector<double>& share = steps.column("memory_share");
  const std::vector<double>& gib = steps.column("memory_gib");
  if (!share.empty() && share.back() > kMemoryFull) {
    warnings.push_back({Level::kBad, concat(number("%.0f%%", 100 * share.back()),
                                            " of the host's memory is taken by rank 0 alone")});
  }
  const size_t rows = gib.size();
  if (rows < 200) return;
  const double half = mean_of(gib, rows / 2, rows / 2 + rows / 20).value;
  const double now = mean_of(gib, rows - rows / 20, rows).value;
  if (!(now > kMemoryGrows * half)) return;
  warnings.push_back(
      {Level::kLook, concat("the memory of rank 0 grows: ", number("%.2f", half),
                            " GiB in the middle of the run, ", number("%.2f", now), " GiB now")});
}

}  // namespace

std::vector<RunWarning> warnings_of_steps(const StepTable& steps) {
  std::vector<RunWarning> warnings;
  if (steps.rows() == 0) return warnings;
  look_for_lost_steps(steps, warnings);
  look_for_rise(steps, warnings);
  look_at_validation(steps, warnings);
  look_at_data(steps, warnings);
  look_at_speed(steps, warnings);
  look_at_memory(steps, warnings);
  return warnings;
}

}  // namespace tessera
