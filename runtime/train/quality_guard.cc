#include "runtime/train/quality_guard.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <sstream>

#include "kernels/core/error.h"
#include "runtime/config/train.pb.h"

namespace tessera {

QualityGuard::Options QualityGuard::options_of(const SparsityConfig& sparsity) {
  return {.paired = sparsity.guard() == SparsityConfig::PAIRED,
          .tolerance = sparsity.guard_tolerance(),
          .window = sparsity.guard_window(),
          .limit = sparsity.guard_limit(),
          .dense_steps = sparsity.dense_steps(),
          .dense_refresh = sparsity.dense_refresh()};
}

void QualityGuard::fit(int64_t step, double loss) {
  const double x = std::log(static_cast<double>(step));
  ++count_;
  const double dx = x - mean_x_;
  mean_x_ += dx / count_;
  mean_y_ += (loss - mean_y_) / count_;
  xx_ += dx * (x - mean_x_);
  xy_ += dx * (loss - mean_y_);
}

bool QualityGuard::refreshes(const StepPlan& plan) const {
  return options_.dense_refresh > 0 && plan.step % options_.dense_refresh == 0;
}

bool QualityGuard::compares(const StepPlan& plan) const {
  return options_.paired && options_.tolerance > 0 && plan.stage == Stage::kTransition &&
         (plan.step - 1) % options_.window == 0 && !refreshes(plan);
}

void QualityGuard::observe(const StepPlan& plan, double loss, std::optional<double> cost) {
  if (options_.tolerance == 0 || !std::isfinite(loss)) return;
  if (options_.paired) {
    if (cost && std::isfinite(*cost)) excess_ = *cost;
    holds_ = plan.stage == Stage::kTransition && excess_ > options_.tolerance;
    return;
  }
  if (plan.step <= options_.dense_steps) {
    if (2 * plan.step > options_.dense_steps) fit(plan.step, loss);
    return;
  }
  const std::optional<double> promised = trend(plan.step);
  if (plan.stage != Stage::kTransition || !promised) {
    holds_ = false;
    return;
  }
  if (!refreshes(plan))
    excess_ += (loss - *promised - excess_) / static_cast<double>(options_.window);
  holds_ = excess_ > options_.tolerance;
}

std::optional<double> QualityGuard::trend(int64_t step) const {
  if (count_ < static_cast<double>(options_.window) || !(xx_ > 0)) return std::nullopt;
  const double slope = std::min(0.0, xy_ / xx_);
  return mean_y_ + slope * (std::log(static_cast<double>(step)) - mean_x_);
}

std::string QualityGuard::state() const {
  std::ostringstream out;
  out << std::hexfloat;
  for (const double value : {count_, mean_x_, mean_y_, xx_, xy_, excess_}) out << value << " ";
  out << (holds_ ? "holds" : "goes");
  return out.str();
}

void QualityGuard::restore(std::string_view state) {
  const auto damaged = [] {
    return Error(ExitCode::kBadData,
                 "quality guard: its state in the checkpoint is damaged; "
                 "resume from another checkpoint");
  };
  std::istringstream in{std::string(state)};
  std::array<double, 6> values{};
  for (double& value : values) {
    std::string word;  // operator>> does not read what hexfloat wrote
    in >> word;
    char* end = nullptr;
    value = std::strtod(word.c_str(), &end);
    if (word.empty() || *end != '\0' || !std::isfinite(value)) throw damaged();
  }
  std::string last;
  in >> last;
  if (values[0] < 0 || (last != "holds" && last != "goes")) throw damaged();
  count_ = values[0];
  mean_x_ = values[1];
  mean_y_ = values[2];
  xx_ = values[3];
  xy_ = values[4];
  excess_ = values[5];
  holds_ = last == "holds";
}

}  // namespace tessera
