#include "runtime/train/quality_guard.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/core/error.h"

namespace tessera {
namespace {

constexpr int64_t kDense = 100;

QualityGuard make(int64_t window = 8, double tolerance = 0.02) {
  return QualityGuard({.tolerance = tolerance,
                       .window = window,
                       .limit = 50,
                       .dense_steps = kDense,
                       .dense_refresh = 10});
}

StepPlan plan(int64_t step) {
  return {.step = step, .stage = step <= kDense ? Stage::kDense : Stage::kTransition};
}

double curve(int64_t step) {
  return 5 - 0.4 * std::log(static_cast<double>(step));
}

/// Shows it the dense stage, whose losses are on the curve.
void show_dense(QualityGuard& guard, int64_t until = kDense) {
  for (int64_t step = 1; step <= until; ++step) {
    // What came before the last half does not count.
    guard.observe(plan(step), 2 * step <= kDense ? 100 : curve(step));
  }
}

TEST(QualityGuard, ExtrapolatesTheLastHalfOfTheDenseStage) {
  QualityGuard guard = make();
  show_dense(guard);
  for (const int64_t step : {60, 100, 200, 1000}) {
    EXPECT_NEAR(guard.trend(step).value(), curve(step), 1e-9) << step;
  }
}

TEST(QualityGuard, IsLeastSquaresAndNeverRises) {
  QualityGuard guard = make(2);
  // Against the formula, on values that lie on no line.
  double n = 0, x = 0, y = 0, xx = 0, xy = 0;
  for (int64_t step = 51; step <= kDense; ++step) {
    const double loss = curve(step) + 0.1 * std::sin(static_cast<double>(step));
    const double at = std::log(static_cast<double>(step));
    guard.observe(plan(step), loss);
    n += 1, x += at, y += loss, xx += at * at, xy += at * loss;
  }
  const double slope = (n * xy - x * y) / (n * xx - x * x);
  EXPECT_LT(slope, 0);
  EXPECT_NEAR(guard.trend(150).value(), (y - slope * x) / n + slope * std::log(150.0), 1e-9);

  QualityGuard rising = make(2);
  for (int64_t step = 51; step <= kDense; ++step) {
    rising.observe(plan(step), 0.01 * static_cast<double>(step));
  }
  EXPECT_NEAR(rising.trend(500).value(), 0.755, 1e-9);  // the mean
}

TEST(QualityGuard, WaitsAboveTheToleranceAndGoesOnBelowIt) {
  QualityGuard guard = make();
  show_dense(guard);
  double expected = 0;
  bool waited = false;
  for (int64_t step = kDense + 1; step <= kDense + 60; ++step) {
    const double excess = step <= kDense + 30 ? 0.05 : 0;
    guard.observe(plan(step),
                  curve(step) + (step % 10 == 0 ? 9 : excess));  // refreshes do not count
    if (step % 10 != 0) expected += (excess - expected) / 8;
    EXPECT_NEAR(guard.excess(), expected, 1e-9);
    EXPECT_EQ(guard.holds_at(0), expected > 0.02) << step;
    waited |= guard.holds_at(0);
  }
  EXPECT_TRUE(waited);
  EXPECT_FALSE(guard.holds_at(0));
}

TEST(QualityGuard, WaitsNoLongerThanItsLimitAndOnlyInTheTransition) {
  QualityGuard guard = make();
  show_dense(guard);
  for (int64_t step = kDense + 1; step < kDense + 30; ++step) guard.observe(plan(step), 9);
  EXPECT_TRUE(guard.holds_at(49));
  EXPECT_FALSE(guard.holds_at(50));
  StepPlan tuning = plan(kDense + 30);
  tuning.stage = Stage::kTuning;
  guard.observe(tuning, 9);
  EXPECT_FALSE(guard.holds_at(0));
}

TEST(QualityGuard, WithoutATrendOrToleranceItNeverWaits) {
  QualityGuard few = make(51);  // the last half has 50 steps
  QualityGuard off = make(8, 0);
  for (QualityGuard* guard : {&few, &off}) {
    show_dense(*guard);
    EXPECT_FALSE(guard->trend(200));
    for (int64_t step = kDense + 1; step < kDense + 30; ++step) guard->observe(plan(step), 9);
    EXPECT_FALSE(guard->holds_at(0));
  }
  QualityGuard not_a_number = make();
  show_dense(not_a_number);
  not_a_number.observe(plan(kDense + 1), std::nan(""));
  EXPECT_EQ(not_a_number.excess(), 0);
}

TEST(QualityGuard, GoesOnFromItsStateBitByBit) {
  QualityGuard whole = make();
  show_dense(whole, 70);
  QualityGuard resumed = make();
  resumed.restore(whole.state());
  for (int64_t step = 71; step <= kDense + 20; ++step) {
    const double loss =
        curve(step) + (step > kDense ? 0.03 : 0) + 1e-3 * std::sin(static_cast<double>(step));
    whole.observe(plan(step), loss);
    resumed.observe(plan(step), loss);
    if (step == kDense + 9) resumed.restore(whole.state());
    EXPECT_EQ(resumed.state(), whole.state()) << step;
  }
  EXPECT_TRUE(whole.holds_at(0));
}

QualityGuard make_paired(double tolerance = 0.02) {
  return QualityGuard({.paired = true,
                       .tolerance = tolerance,
                       .window = 8,
                       .limit = 50,
                       .dense_steps = kDense,
                       .dense_refresh = 9});
}

TEST(QualityGuard, PairedComparesBehindEveryWindowInTheTransitionButInNoRefresh) {
  const QualityGuard guard = make_paired();
  std::vector<int64_t> steps;
  for (int64_t step = 1; step <= kDense + 60; ++step) {
    if (guard.compares(plan(step))) steps.push_back(step);
  }
  EXPECT_EQ(steps, (std::vector<int64_t>{105, 113, 121, 129, 137, 145}));  // 153 is a refresh
  StepPlan tuning = plan(105);
  tuning.stage = Stage::kTuning;
  EXPECT_FALSE(guard.compares(tuning));
  EXPECT_FALSE(make_paired(0).compares(plan(105)));
  EXPECT_FALSE(make().compares(plan(105)));
}

TEST(QualityGuard, PairedWaitsFromOneComparisonToTheNextAndNeedsNoTrend) {
  QualityGuard guard = make_paired();
  guard.observe(plan(kDense + 1), 9);
  EXPECT_FALSE(guard.holds_at(0));
  guard.observe(plan(105), 3, 0.03);
  for (int64_t step = 106; step < 113; ++step) {
    EXPECT_TRUE(guard.holds_at(0)) << step;
    EXPECT_FALSE(guard.holds_at(50)) << step;
    guard.observe(plan(step), 9);
  }
  QualityGuard resumed = make_paired();
  resumed.restore(guard.state());
  EXPECT_TRUE(resumed.holds_at(0));
  guard.observe(plan(113), 9, std::nan(""));
  EXPECT_EQ(guard.excess(), 0.03);
  guard.observe(plan(121), 9, 0.019);
  EXPECT_FALSE(guard.holds_at(0));
  EXPECT_EQ(guard.excess(), 0.019);
  guard.observe(plan(129), 9, 0.5);
  EXPECT_TRUE(guard.holds_at(0));
  StepPlan tuning = plan(130);
  tuning.stage = Stage::kTuning;
  guard.observe(tuning, 9);
  EXPECT_FALSE(guard.holds_at(0));
}

TEST(QualityGuard, RefusesADamagedState) {
  QualityGuard guard = make();
  for (const char* text : {"", "1 2 3", "1 2 3 4 5 6", "1 2 3 4 5 6 waits", "-1 2 3 4 5 6 goes",
                           "1 2 x 4 5 6 goes", "1 2 nan 4 5 6 goes"}) {
    EXPECT_THROW(guard.restore(text), Error) << text;
  }
  guard.restore("0x1p+3 1 2 3 4 0.5 holds");
  EXPECT_TRUE(guard.holds_at(0));
  EXPECT_EQ(guard.excess(), 0.5);
}

}  // namespace
}  // namespace tessera
