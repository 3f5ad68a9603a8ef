#include "runtime/train/trainer.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>

#include "kernels/core/log.h"
#include "runtime/config/train.pb.h"
#include "runtime/train/hook_calls.h"
#include "runtime/train/schedule.h"
#include "runtime/train/training_data.h"

namespace tessera {

namespace {

using Clock = std::chrono::steady_clock;

void update(Training& t, const StepPlan& plan, StepReport& report) {
  const SpikeGuard::Verdict verdict = t.state.guard.judge(report.loss, report.gradient_norm);
  report.skipped = verdict != SpikeGuard::Verdict::kApply;
  if (report.skipped) {
    log_once(concat("step ", plan.step, " is skipped: ", name_of(verdict), " (loss ", report.loss,
                    ", gradient norm ", report.gradient_norm, ")"));
    return;
  }
  const double clip = t.config.optimizer().clip_norm();
  const double scale = clip > 0 && report.gradient_norm > clip ? clip / report.gradient_norm : 1.0;
  ++t.state.progress.updates;
  const AdamwOptimizer::Update update{.number = t.state.progress.updates,
                                      .learning_rate = plan.learning_rate,
                                      .gradient_scale = scale};
  // In the order in which the next forward reads them, which waits for each where it needs it.
  for (size_t bucket = 0; bucket < t.exchange.buckets().size(); ++bucket) {
    t.state.optimizer.update(t.stream, bucket, update);
    t.exchange.start_gather(t.stream, bucket);
  }
  if (!t.batch.expert_counts().empty()) {
    t.model.update_balance_bias(t.stream, t.batch.expert_counts());
  }
}

/// What a step is to the loop.
struct StepResult {
  StepReport report;
  bool stop = false;  ///< a rank was asked to
  SaveVotes saving;   ///< summed over the ranks
};

// Loads the step's part of the data, of which it is told where the next step begins.
DataPosition load_step(Training& t, const StepPlan& plan, HookCalls& hooks) {
  DataMixture::Taken taken = take_batch(t.data, t.state.progress.data, t.config, plan);
  PlanRiders riders = hooks.riders();
  t.batch.load(rows_of(std::move(taken.windows), size_of(t.config, plan).sequence_length), plan,
               riders);
  hooks.check(riders);
  return std::move(taken.next);
}

StepResult run_step(Training& t, const StepPlan& plan, HookCalls& hooks) {
  const auto begin = Clock::now();
  RunProgress& progress = t.state.progress;
  t.mesh.world().log().set_place(plan.step, -1);
  t.state.store.zero_gradients(t.stream);
  DataPosition next = load_step(t, plan, hooks);
  std::optional<double> dense_loss;
  if (t.state.quality && t.state.quality->compares(plan)) {
    dense_loss = t.batch.loss_under(full_attention(t.config, plan));
  }
  t.batch.forward_backward(plan);
  CollectiveLog& log = t.mesh.world().log();
  log.set_phase(Phase::kSums);
  t.exchange.finish_sums(t.stream);
  std::array<double, kStepRiders> riders{t.stop.requested() ? 1.0 : 0.0};
  const SaveVotes votes = t.saver.votes();
  std::copy(votes.begin(), votes.end(), riders.begin() + 1);
  const GlobalBatch::Totals totals = t.batch.reduce(riders);
  const int64_t tokens = size_of(t.config, plan).tokens();
  progress.step = plan.step;
  progress.data = std::move(next);
  progress.consumed_tokens += tokens;
  StepReport report{.plan = plan,
                    .steps = t.config.steps(),
                    .tokens = tokens,
                    .consumed_tokens = progress.consumed_tokens,
                    .loss = totals.loss / std::max(1.0, totals.valid_tokens),
                    .gate_kl = totals.gate_kl,
                    .gate_entropy = totals.gate_entropy,
                    .gate_z = totals.gate_z,
                    .balance_loss = totals.balance,
                    .router_z = totals.router_z,
                    .gradient_norm = std::sqrt(totals.squares),
                    .sparsity = totals.sparsity,
                    .gate_openness = totals.gate_openness,
                    .tree_recall = totals.tree_recall,
                    .expert_load = expert_load(totals.expert_counts, t.mesh.size(Axis::kExpert)),
                    .data_seconds = totals.data_seconds,
                    .gates = totals.gates};
  report.expert_load.dropped = std::llround(totals.dropped_pairs);
  if (dense_loss) report.sparsity_cost = report.loss - *dense_loss;
  log.set_phase(Phase::kUpdate);
  update(t, plan, report);
  log.recorder().finish_step();
  report.skipped_steps = progress.step - progress.updates;
  report.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  StepResult result{.report = report, .stop = riders[0] > 0, .saving = {}};
  std::copy(riders.begin() + 1, riders.end(), result.saving.begin());
  if (result.stop) {
    log_once(concat(riders[0], " of ", t.mesh.world().size(),
                    " ranks were asked to stop: saving after step ", plan.step));
  }
  return result;
}

// Whether the transition goes on is a matter of the loss. After the step.
void guard_quality(Training& t, const StepReport& report) {
  if (!t.state.quality) return;
  QualityGuard& guard = *t.state.quality;
  // A pair is as true where the update was skipped, and a batch that sparsity spoils often is.
  if (report.skipped && !report.sparsity_cost) return;
  const int64_t waited = t.state.progress.held_steps;
  const bool held = guard.holds_at(waited);
  const int64_t step = report.plan.step;
  guard.observe(report.plan, report.loss, report.sparsity_cost);
  const QualityGuard::Options& options = guard.options();
  const std::optional<double> trend = guard.trend(step + 1);
  if (options.tolerance > 0 && !options.paired && step == options.dense_steps && !trend) {
    log_once(concat("quality guard: the dense stage had fewer than ", 2 * options.window,
                    " steps, which show no trend; the transition will not wait"));
  }
  if (guard.holds_at(waited) == held) return;
  const std::string against = options.paired
                                  ? "that of full attention with the same weights on the same batch"
                                  : concat("the dense trend, ", trend.value_or(0), " by now");
  log_once(concat("quality guard: after step ", step, " the transition ",
                  guard.holds_at(waited) ? "waits" : "goes on", ": the loss is ", guard.excess(),
                  " nats above ", against, "; tolerated are ", options.tolerance,
                  "; it has waited ", waited, " of at most ", options.limit, " steps"));
}

bool due(int64_t every, int64_t step) {
  return every > 0 && step % every == 0;
}

}  // namespace

TrainingEnd train(Training& t) {
  const int64_t save_every = t.config.checkpoint().every();
  const int64_t validate_every = t.config.runtime().validate_every();
  CollectiveLog& log = t.mesh.world().log();
  HookCalls hooks(t.state.hooks, t.config, t.mesh.world());
  bool stop = false;
  while (!stop && t.state.progress.step < t.config.steps()) {
    t.trace.before_step(t.state.progress.step + 1);
    if (t.state.quality && t.state.quality->holds_at(t.state.progress.held_steps)) {
      ++t.state.progress.held_steps;
    }
    StepPlan plan = plan_step(t.config, t.state.progress.step + 1, t.state.progress.held_steps);
    hooks.plan(plan);
    StepResult result = run_step(t, plan, hooks);
    StepReport& report = result.report;
    stop = result.stop;
    const bool last = plan.step == t.config.steps();
    if (t.validation != nullptr && (last || due(validate_every, plan.step))) {
      const GlobalBatch::Evaluation found =
          t.batch.evaluate(*t.validation, t.config.runtime().validate_batches(), plan);
      report.validation_loss = found.loss;
      if (t.validation->has_answers()) report.accuracy = found.accuracy;
    }
    guard_quality(t, report);
    hooks.observe(report);
    t.saver.after_step(result.saving, !last && !stop && due(save_every, plan.step));
  }
  hooks.finish();
  log.set_phase(Phase::kCheckpoint);
  t.saver.finish();
  t.exchange.finish_gathers();
  log.set_phase(Phase::kEnd);
  t.trace.finish();
  return t.state.progress.step < t.config.steps() ? TrainingEnd::kStopped : TrainingEnd::kFinished;
}

}  // namespace tessera
