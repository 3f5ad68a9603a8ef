#include "runtime/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "model/sparsity_budget.h"
#include "runtime/config/batch_schedule.h"
#include "runtime/config/train.pb.h"

namespace tessera {

namespace {

double geometric(double from, double to, double share) {
  return std::pow(from, 1 - share) * std::pow(to, share);
}

double smooth(double x) {
  return x * x * (3 - 2 * x);
}

void plan_transition(const TrainConfig& config, int64_t done, StepPlan& plan) {
  const SparsityConfig& sparsity = config.sparsity();
  const int64_t n = plan.sequence_length;
  const double x = static_cast<double>(done) / static_cast<double>(sparsity.transition_steps());
  const double first = sparsity.window_first();
  const double rho = smooth(std::max(0.0, (x - first) / (1 - first)));
  const double rho_of_window = first > 0 ? smooth(std::min(1.0, x / first)) : rho;
  plan.kl = geometric(sparsity.kl(), sparsity.final_kl(), rho);
  plan.entropy = rho * sparsity.entropy();
  if (sparsity.dense_refresh() > 0 && plan.step % sparsity.dense_refresh() == 0) {
    attend_to_everything(config, plan);
    return;
  }
  const auto most = static_cast<double>(most_blocks(config.model(), n));
  const double kept = std::min(most, static_cast<double>(kept_blocks(config.model(), n)));
  const int64_t window = std::min<int64_t>(n, config.model().attention().window());
  plan.kept_blocks = static_cast<int64_t>(std::ceil(geometric(most, kept, rho) - 1e-9));
  plan.window =
      std::llround(geometric(static_cast<double>(n), static_cast<double>(window), rho_of_window));
  plan.gate_strength = rho * sparsity.strength();
}

void plan_sparsity(const TrainConfig& config, int64_t held, StepPlan& plan) {
  const SparsityConfig& sparsity = config.sparsity();
  const int64_t n = plan.sequence_length;
  const int64_t dense = sparsity.dense_steps();
  const int64_t transition = sparsity.transition_steps();
  plan.kl = sparsity.kl();
  plan.z_loss = sparsity.z_loss();
  plan.gated = plan.step > dense - sparsity.gate_warmup_steps();
  if (plan.step <= dense) {
    plan.stage = plan.gated ? Stage::kGateWarmup : Stage::kDense;
    attend_to_everything(config, plan);
  } else if (plan.step - held <= dense + transition) {
    plan.stage = Stage::kTransition;
    plan_transition(config, std::max<int64_t>(0, plan.step - held - dense), plan);
  } else {
    plan.stage = Stage::kTuning;
    plan.kl = sparsity.final_kl();
    plan.entropy = sparsity.entropy();
    plan.kept_blocks = std::min(most_blocks(config.model(), n), kept_blocks(config.model(), n));
    plan.window = std::min<int64_t>(n, config.model().attention().window());
    plan.gate_strength = sparsity.strength();
  }
}

void plan_measures(const TrainConfig& config, StepPlan& plan) {
  const MonitorConfig& monitor = config.monitor();
  const auto due = [&](int64_t every) { return every > 0 && plan.step % every == 0; };
  plan.measure_gates = due(monitor.gate_every());
  // Where budgets change, any measure may be the one before or after a change.
  const bool changes = config.gate_control().method() != GateControlConfig::NONE;
  const bool wanted = changes ? monitor.heat_map_every() > 0 : due(monitor.heat_map_every());
  plan.heat_maps = plan.measure_gates && wanted;
}

void plan_batch(const TrainConfig& config, StepPlan& plan) {
  const BatchSize size = batch_size_at(config, plan.step);
  plan.sequences = size.sequences;
  plan.sequence_length = size.sequence_length;
  for (const SourceConfig& source : config.curriculum().sources()) {
    plan.weights.push_back(weight_at(source.weight(), plan.step));
  }
  plan.pool = pool_at(config, plan.step);
}

}  // namespace

void attend_to_everything(const TrainConfig& config, StepPlan& plan) {
  plan.kept_blocks = most_blocks(config.model(), plan.sequence_length);
  plan.window = plan.sequence_length;
  plan.gate_strength = 0;
}

StepPlan full_attention(const TrainConfig& config, StepPlan plan) {
  if (plan.sequence_length == 0) plan.sequence_length = config.batch().sequence_length();
  attend_to_everything(config, plan);
  plan.stage = Stage::kDense;
  plan.gated = false;
  plan.kept_of_layers.clear();
  plan.measure_gates = false;
  plan.heat_maps = false;
  return plan;
}

const char* name_of(Stage stage) {
  switch (stage) {
    case Stage::kDense:
      return "dense";
    case Stage::kGateWarmup:
      return "gate warm-up";
    case Stage::kTransition:
      return "transition";
    case Stage::kTuning:
      return "tuning";
  }
  return "?";
}

double learning_rate(const TrainConfig& config, int64_t step) {
  const ScheduleConfig& schedule = config.schedule();
  const double peak = config.optimizer().learning_rate();
  const double last = peak * schedule.final_fraction();
  const int64_t warmup = schedule.warmup_steps();
  if (step <= warmup) return peak * static_cast<double>(step) / static_cast<double>(warmup);
  const auto share = [&](int64_t begin) {  // of the steps after `begin` that are done, in (0, 1]
    const int64_t all = std::max<int64_t>(1, config.steps() - begin);
    return std::clamp(static_cast<double>(step - begin) / static_cast<double>(all), 0.0, 1.0);
  };
  switch (schedule.shape()) {
    case ScheduleConfig::WSD:
      return peak + (last - peak) * share(config.steps() - schedule.decay_steps());
    case ScheduleConfig::CONSTANT:
      return peak;
    default:
      return last + (peak - last) * 0.5 * (1 + std::cos(std::numbers::pi * share(warmup)));
  }
}

StepPlan plan_step(const TrainConfig& config, int64_t step, int64_t held) {
  StepPlan plan;
  plan.step = step;
  plan.learning_rate = learning_rate(config, step);
  plan_batch(config, plan);
  plan_sparsity(config, held, plan);
  if (config.model().attention().selection() == AttentionConfig::NONE) plan.gated = false;
  plan_measures(config, plan);
  return plan;
}

}  // namespace tessera
