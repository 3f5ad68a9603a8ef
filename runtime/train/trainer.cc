#include "runtime/train/trainer.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>

#include "kernels/core/log.h"
#include "runtime/config/train.pb.h"
#include "runtime/train/schedule.h"

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

StepResult run_step(Training& t, const StepPlan& plan) {
  const auto begin = Clock::now();
  RunProgress& progress = t.state.progress;
  t.mesh.world().log().set_place(plan.step, -1);
  t.state.store.zero_gradients(t.stream);
  t.batch.forward_backward(t.data, progress.consumed_samples, plan);
  CollectiveLog& log = t.mesh.world().log();
  log.set_phase(Phase::kSums);
  t.exchange.finish_sums(t.stream);
  std::array<double, kStepRiders> riders{t.stop.requested() ? 1.0 : 0.0};
  const SaveVotes votes = t.saver.votes();
  std::copy(votes.begin(), votes.end(), riders.begin() + 1);
  const GlobalBatch::Totals totals = t.batch.reduce(riders);
  const int64_t sequences = t.config.batch().sequences();
  const int64_t tokens = sequences * t.config.batch().sequence_length();
  progress.step = plan.step;
  progress.consumed_samples += sequences;
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

bool due(int64_t every, int64_t step) {
  return every > 0 && step % every == 0;
}

}  // namespace

TrainingEnd train(Training& t) {
  const int64_t save_every = t.config.checkpoint().every();
  const int64_t validate_every = t.config.runtime().validate_every();
  CollectiveLog& log = t.mesh.world().log();
  bool stop = false;
  while (!stop && t.state.progress.step < t.config.steps()) {
    t.trace.before_step(t.state.progress.step + 1);
    StepPlan plan = plan_step(t.config, t.state.progress.step + 1);
    for (const auto& hook : t.state.hooks) hook->plan(plan);
    StepResult result = run_step(t, plan);
    StepReport& report = result.report;
    stop = result.stop;
    const bool last = plan.step == t.config.steps();
    if (t.validation != nullptr && (last || due(validate_every, plan.step))) {
      report.validation_loss =
          t.batch.evaluate(*t.validation, t.config.runtime().validate_batches(), plan);
    }
    for (const auto& hook : t.state.hooks) hook->observe(report);
    t.saver.after_step(result.saving, !last && !stop && due(save_every, plan.step));
  }
  log.set_phase(Phase::kCheckpoint);
  t.saver.finish();
  t.exchange.finish_gathers();
  log.set_phase(Phase::kEnd);
  t.trace.finish();
  return t.state.progress.step < t.config.steps() ? TrainingEnd::kStopped : TrainingEnd::kFinished;
}

}  // namespace tessera
