#include "runtime/train/hook_calls.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/core/error.h"
#include "model/sparsity_budget.h"
#include "runtime/config/train.pb.h"

namespace tessera {

namespace {

void expect_range(const char* what, double value, double least, double most) {
  if (value >= least && value <= most) return;  // false for NaN
  throw Error(ExitCode::kError,
              concat("it sets ", what, " to ", value, ", expected ", least, " to ", most));
}

// Shapes of other steps than were planned would need memory that nobody has counted.
void expect_unchanged(const StepPlan& before, const StepPlan& plan) {
  const bool same =
      plan.step == before.step && plan.stage == before.stage && plan.gated == before.gated &&
      plan.sequences == before.sequences && plan.sequence_length == before.sequence_length &&
      plan.measure_gates == before.measure_gates && plan.heat_maps == before.heat_maps &&
      plan.weights.size() == before.weights.size();
  if (same) return;
  throw Error(ExitCode::kError,
              "it changes the step's number, stage, sequences, their length or what is measured, "
              "which only the configuration may");
}

void expect_possible(const TrainConfig& config, const StepPlan& plan) {
  const auto length = static_cast<double>(plan.sequence_length);
  const auto blocks = static_cast<double>(most_blocks(config.model(), plan.sequence_length));
  expect_range("the learning rate", plan.learning_rate, 0, 10);
  expect_range("the kept blocks", static_cast<double>(plan.kept_blocks), 1, blocks);
  for (const int64_t kept : plan.kept_of_layers) {
    expect_range("the kept blocks of a layer", static_cast<double>(kept), 1, blocks);
  }
  expect_range("the window", static_cast<double>(plan.window), 1, length);
  expect_range("the gate's strength", plan.gate_strength, 0, 1 - 0x1p-10);
  for (const double coefficient : {plan.kl, plan.entropy, plan.z_loss}) {
    expect_range("a coefficient of the gate's losses", coefficient, 0, 1000);
  }
  for (const double weight : plan.weights) expect_range("the weight of a source", weight, 0, 1);
  expect_range("the sum of all weights",
               std::accumulate(plan.weights.begin(), plan.weights.end(), 0.0), 0, 1 + 1e-9);
  expect_range("the pool", plan.pool, 1e-9, 1);
}

}  // namespace

void HookCalls::fail(const Hook& hook, const std::string& doing, int64_t step,
                     const std::string& why) {
  if (failure_) return;
  failure_ = {.reason = concat("hook ", hook.name(), " failed ", doing, " step ", step, ": ",
                               without_rank(why)),
              .code = ExitCode::kError};
}

void HookCalls::plan(StepPlan& plan) {
  step_ = plan.step;
  planned_.clear();
  for (const auto& hook : hooks_) {
    const StepPlan before = plan;
    try {
      hook->plan(plan);
      expect_unchanged(before, plan);
      expect_possible(config_, plan);
    } catch (const std::exception& error) {
      fail(*hook, "planning", before.step, error.what());
      plan = before;
    }
    planned_.push_back({.hook = hook->name(), .digest = digest_of(plan)});
  }
  riders_ = plan_riders(plan, failure_.has_value());
}

void HookCalls::check(const PlanRiders& sums) {
  switch (agreement(sums, world_.size())) {
    case Agreement::kSame:
      return;
    case Agreement::kFailed:
      stop(failure_);
    case Agreement::kDiffers:
      stop(find_difference());
  }
}

void HookCalls::stop(const std::optional<Failure>& failure) const {
  const std::optional<Failure> first = first_failure(world_, failure);
  if (!first) {
    throw Error(ExitCode::kError, concat("ranks plan step ", step_,
                                         " differently, and no hook changed it; check that "
                                         "all run the same program with the same configuration"));
  }
  throw Error(first->code, to_text(*first, world_));
}

// The first hook after which this rank's plan is not that of rank 0. Some hooks are on rank 0
// alone; those change no plan.
std::optional<Failure> HookCalls::find_difference() const {
  std::string text;
  for (const Planned& planned : planned_) text += concat(planned.hook, "=", planned.digest, "\n");
  const std::string of_rank_0 = concat("\n", broadcast_text(world_, text, 0));
  for (const Planned& planned : planned_) {
    if (of_rank_0.find(concat("\n", planned.hook, "=", planned.digest, "\n")) !=
        std::string::npos) {
      continue;
    }
    return Failure{.reason = concat("hook ", planned.hook, " plans step ", step_,
                                    " differently on different ranks; a plan may depend on the "
                                    "step, its reports and the options only"),
                   .code = ExitCode::kError};
  }
  return std::nullopt;
}

void HookCalls::observe(const StepReport& report) {
  for (const auto& hook : hooks_) {
    try {
      hook->observe(report);
    } catch (const std::exception& error) {
      fail(*hook, "after", report.plan.step, error.what());
    }
  }
}

void HookCalls::finish() {
  if (first_failure(world_, failure_)) stop(failure_);
}

}  // namespace tessera
