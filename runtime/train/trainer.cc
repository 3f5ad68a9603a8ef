#include "runtime/train/trainer.h"

#include <algorithm>
#include <array>
#include <chrono>

#include "kernels/core/log.h"
#include "parallel/gradient_reducer.h"
#include "runtime/config/train.pb.h"
#include "runtime/train/schedule.h"

namespace tessera {

namespace {

using Clock = std::chrono::steady_clock;

void save(Training& t) {
  // Every rank comes here at the same step. Ranks of the data axis hold the same state, so rank 0
  // writes it; none goes on before it is durable, because a rank that fails later must not be able
  // to take the job down while its only copy is half written.
  std::array<double, 1> lost_fence{0};
  if (t.checkpoints != nullptr) {
    const std::vector<MeshAxis> mesh{{"data", t.world.size()}};
    try {
      const SaveReport saved = save_state(*t.checkpoints, t.state, t.config, mesh);
      log_line(
          saved.committed
              ? concat("saved ", saved.path.string(), ", ", saved.bytes >> 20, " MiB in ",
                       static_cast<int64_t>(1000 * (saved.write_seconds + saved.commit_seconds)),
                       " ms")
              : concat("step ", t.state.progress.step,
                       " was not saved, training goes on: ", saved.failure));
    } catch (const Error& error) {
      if (error.code() != ExitCode::kTryAgain) throw;
      log_line(error.what());
      lost_fence[0] = 1;
    }
  }
  t.world.all_reduce_values(lost_fence);
  if (lost_fence[0] > 0) {
    throw Error(ExitCode::kTryAgain,
                "another job has taken over this run directory; this one stops without saving");
  }
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
  t.state.optimizer.update(t.stream, t.state.progress.updates, plan.learning_rate, scale);
  if (!t.batch.expert_counts().empty()) {
    t.model.update_balance_bias(t.stream, t.batch.expert_counts());
  }
}

StepReport run_step(Training& t, GradientReducer& reducer, const StepPlan& plan, bool& stop) {
  const auto begin = Clock::now();
  RunProgress& progress = t.state.progress;
  t.state.store.zero_gradients(t.stream);
  const GlobalBatch::Totals totals =
      t.batch.forward_backward(t.data, progress.consumed_samples, plan, t.stop.requested());
  reducer.reduce(t.stream);
  const std::array<TensorView, 1> gradients{t.state.store.gradients()};
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
                    .gradient_norm = gradient_norm(t.stream, gradients).norm,
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
  GradientReducer reducer(t.world, {t.state.store.gradients()});
  const int64_t save_every = t.config.checkpoint().every();
  const int64_t validate_every = t.config.runtime().validate_every();
  int64_t saved_step = t.state.progress.step;
  bool stop = false;
  while (!stop && t.state.progress.step < t.config.steps()) {
    StepPlan plan = plan_step(t.config, t.state.progress.step + 1);
    for (const auto& hook : t.state.hooks) hook->plan(plan);
    StepReport report = run_step(t, reducer, plan, stop);
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
