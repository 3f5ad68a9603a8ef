#include "runtime/train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "kernels/core/log.h"
#include "runtime/config/train.pb.h"
#include "runtime/train/schedule.h"

namespace tessera {

namespace {

using Clock = std::chrono::steady_clock;

// Every rank comes here at the same step. None goes on before the checkpoint is durable, because a
// rank that fails later must not be able to take the job down while its only copy is half written.
void save(Training& t) {
  t.exchange.finish_gathers();
  const SaveReport saved = save_state(t.mesh, t.checkpoints, t.state, t.config);
  if (t.checkpoints == nullptr) return;
  log_line(saved.committed
               ? concat("saved ", saved.path.string(), ", ", saved.bytes >> 20, " MiB in ",
                        static_cast<int64_t>(1000 * (saved.write_seconds + saved.commit_seconds)),
                        " ms")
               : concat("step ", t.state.progress.step,
                        " was not saved, training goes on: ", saved.failure));
}

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

StepReport run_step(Training& t, const StepPlan& plan, bool& stop) {
  const auto begin = Clock::now();
  RunProgress& progress = t.state.progress;
  t.mesh.world().log().set_place(plan.step, -1);
  t.state.store.zero_gradients(t.stream);
  t.batch.forward_backward(t.data, progress.consumed_samples, plan);
  t.exchange.finish_sums(t.stream);
  const GlobalBatch::Totals totals =
      t.batch.reduce(t.exchange.owned_squares(t.stream), t.stop.requested());
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
                    .expert_load = expert_load(t.batch.expert_counts(), t.mesh.size(Axis::kExpert)),
                    .data_seconds = totals.data_seconds};
  report.expert_load.dropped = std::llround(totals.dropped_pairs);
  update(t, plan, report);
  t.stream.synchronize();
  report.skipped_steps = progress.step - progress.updates;
  report.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  stop = totals.stop > 0;
  if (stop) {
    log_once(concat(totals.stop, " of ", t.mesh.world().size(),
                    " ranks were asked to stop: saving after step ", plan.step));
  }
  return report;
}

bool due(int64_t every, int64_t step) {
  return every > 0 && step % every == 0;
}

}  // namespace

TrainingEnd train(Training& t) {
  const int64_t save_every = t.config.checkpoint().every();
  const int64_t validate_every = t.config.runtime().validate_every();
  int64_t saved_step = t.state.progress.step;
  bool stop = false;
  while (!stop && t.state.progress.step < t.config.steps()) {
    StepPlan plan = plan_step(t.config, t.state.progress.step + 1);
    for (const auto& hook : t.state.hooks) hook->plan(plan);
    StepReport report = run_step(t, plan, stop);
    const bool last = plan.step == t.config.steps();
    if (t.validation != nullptr && (last || due(validate_every, plan.step))) {
      report.validation_loss =
          t.batch.evaluate(*t.validation, t.config.runtime().validate_batches(), plan);
    }
    for (const auto& hook : t.state.hooks) hook->observe(report);
    if (last || stop || due(save_every, plan.step)) {
      save(t);
      saved_step = plan.step;
    }
  }
  if (saved_step != t.state.progress.step) save(t);
  t.exchange.finish_gathers();
  return t.state.progress.step < t.config.steps() ? TrainingEnd::kStopped : TrainingEnd::kFinished;
}

}  // namespace tessera
