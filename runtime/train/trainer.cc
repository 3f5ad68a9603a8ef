#include "runtime/train/trainer.h"

#include <algorithm>
#include <chrono>

#include "kernels/core/log.h"
#include "runtime/config/train.pb.h"
#include "runtime/train/schedule.h"

namespace tessera {

namespace {

using Clock = std::chrono::steady_clock;

// Every rank comes here at the same step. None goes on before the checkpoint is durable, because a
// rank that fails later must not be able to take the job down while its only copy is half written.
void save(Training& t) {
  const SaveReport saved = save_state(t.mesh, t.checkpoints, t.state, t.config);
  if (t.checkpoints == nullptr) return;
  log_line(saved.committed
               ? concat("saved ", saved.path.string(), ", ", saved.bytes >> 20, " MiB in ",
                        static_cast<int64_t>(1000 * (saved.write_seconds + saved.commit_seconds)),
                        " ms")
               : concat("step ", t.state.progress.step,
                        " was not saved, training goes on: ", saved.failure));
}

double expert_load(ConstTensorView counts) {
  if (counts.empty()) return 0;
  const int64_t experts = counts.shape()[1];
  double worst = 0;
  for (int64_t layer = 0; layer < counts.shape()[0]; ++layer) {
    const auto row = counts.rows(layer, 1).as<float>();
    double sum = 0;
    for (const float count : row) sum += count;
    const double most = *std::max_element(row.begin(), row.end());
    if (sum > 0) worst = std::max(worst, most * static_cast<double>(experts) / sum);
  }
  return worst;
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
  // In the order in which the next forward reads them: what comes first can be waited for first.
  for (size_t bucket = 0; bucket < t.exchange.buckets().size(); ++bucket) {
    t.state.optimizer.update(t.stream, bucket, update);
    t.exchange.start_gather(t.stream, bucket);
  }
  if (!t.batch.expert_counts().empty()) {
    t.model.update_balance_bias(t.stream, t.batch.expert_counts());
  }
  t.exchange.finish_gathers();
}

StepReport run_step(Training& t, const StepPlan& plan, bool& stop) {
  const auto begin = Clock::now();
  RunProgress& progress = t.state.progress;
  t.state.store.zero_gradients(t.stream);
  const GlobalBatch::Totals totals =
      t.batch.forward_backward(t.data, progress.consumed_samples, plan, t.stop.requested());
  t.exchange.finish_sums(t.stream);
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
                    .gradient_norm = t.exchange.norm(t.stream).norm,
                    .sparsity = totals.sparsity,
                    .gate_openness = totals.gate_openness,
                    .expert_load = expert_load(t.batch.expert_counts()),
                    .data_seconds = totals.data_seconds};
  update(t, plan, report);
  t.stream.synchronize();
  report.skipped_steps = progress.step - progress.updates;
  report.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  stop = totals.stop > 0;
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
  return t.state.progress.step < t.config.steps() ? TrainingEnd::kStopped : TrainingEnd::kFinished;
}

}  // namespace tessera
