#include "runtime/watch/step_times.h"

#include <gtest/gtest.h>

namespace tessera {
namespace {

FlightState after(int64_t steps, double last_seconds) {
  FlightState state;
  state.phase = Phase::kBackward;
  state.steps = steps;
  state.last_step = static_cast<int64_t>(1e9 * last_seconds);
  return state;
}

TEST(StepTimes, GivesTheFirstStepsTimeToSetUp) {
  StepTimes times({.setup = 900, .step = 60});
  for (int64_t step = 0; step < 5; ++step) {
    times.observe(after(step, 1));
    EXPECT_EQ(times.limit(after(step, 1)), 900) << step;
  }
  times.observe(after(5, 1));
  EXPECT_EQ(times.limit(after(5, 1)), 60);
}

TEST(StepTimes, GivesSlowStepsMore) {
  StepTimes times({.step = 60});
  for (int64_t step = 1; step <= 100; ++step) times.observe(after(step, step == 50 ? 1000 : 30));
  // One in a hundred does not count.
  EXPECT_DOUBLE_EQ(times.limit(after(100, 30)), 150);
  for (int64_t step = 101; step <= 2000; ++step) times.observe(after(step, 20));
  EXPECT_DOUBLE_EQ(times.limit(after(2000, 20)), 100);
}

TEST(StepTimes, GivesEverySectionItsOwn) {
  const WatchLimits limits{.setup = 1, .step = 2, .validation = 3, .checkpoint = 4, .between = 5};
  const StepTimes times(limits);
  FlightState state;
  const auto limit = [&](Phase phase) {
    state.phase = phase;
    return times.limit(state);
  };
  EXPECT_EQ(limit(Phase::kSetup), 1);
  EXPECT_EQ(limit(Phase::kValidation), 3);
  EXPECT_EQ(limit(Phase::kCheckpoint), 4);
  EXPECT_EQ(limit(Phase::kBetweenSteps), 5);
  EXPECT_EQ(limit(Phase::kEnd), 5);
}

}  // namespace
}  // namespace tessera
