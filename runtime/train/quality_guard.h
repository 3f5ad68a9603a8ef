#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "runtime/train/step_plan.h"

namespace tessera {

class SparsityConfig;

/// Says when the transition from full to sparse attention has to wait: while e, what being sparse
/// costs, is above a tolerance. Then rho, and with it k, W and lambda, stand still.
///
/// Trend: stage 1 promises a loss, the straight line over log(step), never rising, that fits best,
/// by least squares, the losses of its last half of steps. With t the loss that this trend has at
/// step s, and over the steps of the transition that are not dense refreshes,
///   e <- e + (loss - t - e) / window        e = 0 at the beginning
/// Comparing differences, not losses, keeps a curve that falls from looking too high by its lag.
///
/// Paired: in one of `window` steps of the transition the same weights meet the same batch twice,
///   e <- loss - loss under full attention   e = 0 at the beginning
/// which needs no stage 1 and no trend, and knows nothing of a model that would have stayed dense.
///
/// Losses are the same on every rank, so the guard is. Skipped updates count in no trend.
class QualityGuard {
 public:
  struct Options {
    bool paired = false;
    double tolerance = 0.02;  ///< nats; 0: never waits
    int64_t window = 32;      ///< steps of the average, and a trend needs as many losses; paired:
                              ///< from one comparison to the next
    int64_t limit = 0;        ///< steps that it may wait in all
    int64_t dense_steps = 0;
    int64_t dense_refresh = 0;
  };
  explicit QualityGuard(const Options& options) : options_(options) {}
  static Options options_of(const SparsityConfig& sparsity);

  /// Whether the loss of the batch of this step under full attention is wanted: paired, in a step
  /// of the transition whose number is 1 more than a multiple of `window`, if it is no dense
  /// refresh.
  bool compares(const StepPlan& plan) const;
  /// After a step that was applied, or that compares, with its new e.
  void observe(const StepPlan& plan, double loss, std::optional<double> cost = {});
  /// Whether the step after the last one observed waits, when the transition has waited for `held`
  /// steps already.
  bool holds_at(int64_t held) const { return holds_ && held < options_.limit; }
  /// t at step `step`; nothing without a trend.
  std::optional<double> trend(int64_t step) const;
  double excess() const { return excess_; }  ///< e
  const Options& options() const { return options_; }

  /// For checkpoints, exactly. restore() throws Error(kBadData) on other text.
  std::string state() const;
  void restore(std::string_view state);

 private:
  bool refreshes(const StepPlan& plan) const;
  void fit(int64_t step, double loss);

  Options options_;
  // Of x = log(step), y = loss: means, and sums of squares and products around them.
  double count_ = 0;
  double mean_x_ = 0;
  double mean_y_ = 0;
  double xx_ = 0;
  double xy_ = 0;
  double excess_ = 0;
  bool holds_ = false;
};

}  // namespace tessera
