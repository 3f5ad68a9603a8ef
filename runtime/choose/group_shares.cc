#include "runtime/choose/group_shares.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/core/error.h"

namespace tessera {

namespace {

constexpr double kMeanMemory = 0.9;
constexpr double kSquareMemory = 0.99;
constexpr int kHalvings = 60;
constexpr double kFallingPart = 0.75;

double clipped_total(std::span<const double> x, double price) {
  double total = 0;
  for (const double one : x) total += std::clamp(one - price, 0.0, 1.0);
  return total;
}

double mean_of(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

}  // namespace

std::vector<double> with_total(std::vector<double> x, double total) {
  const auto [least, most] = std::ranges::minmax(x);
  double low = least - 1;  // all are 1
  double high = most;      // all are 0
  for (int i = 0; i < kHalvings; ++i) {
    const double middle = (low + high) / 2;
    (clipped_total(x, middle) > total ? low : high) = middle;
  }
  for (double& one : x) one = std::clamp(one - high, 0.0, 1.0);
  return x;
}

double total_of_step(int64_t step, int64_t steps, int64_t groups, int64_t chosen) {
  const double done =
      std::min(1.0, static_cast<double>(step) / (kFallingPart * static_cast<double>(steps)));
  return std::pow(static_cast<double>(groups), 1 - done) *
         std::pow(static_cast<double>(chosen), done);
}

LayerShares::LayerShares(int64_t groups)
    : values_(static_cast<size_t>(groups), 1.0), means_(values_.size()) {}

void LayerShares::follow(std::span<const double> slopes, double total, double rate) {
  CHECK(slopes.size() == values_.size(), "group shares: ", slopes.size(), " slopes for ",
        values_.size(), " groups");
  const double common = mean_of(slopes);
  double square = 0;
  for (size_t c = 0; c < slopes.size(); ++c) {
    const double own = slopes[c] - common;
    means_[c] = kMeanMemory * means_[c] + (1 - kMeanMemory) * own;
    square += own * own / static_cast<double>(slopes.size());
  }
  square_ = kSquareMemory * square_ + (1 - kSquareMemory) * square;
  ++steps_;
  const auto steps = static_cast<double>(steps_);
  const double size = std::sqrt(square_ / (1 - std::pow(kSquareMemory, steps)));
  const double scale = size > 0 ? rate / (size * (1 - std::pow(kMeanMemory, steps))) : 0;
  std::vector<double> wanted = values_;
  for (size_t c = 0; c < wanted.size(); ++c) wanted[c] -= scale * means_[c];
  values_ = with_total(std::move(wanted), total);
}

}  // namespace tessera
