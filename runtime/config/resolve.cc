#include "runtime/config/resolve.h"

#include <algorithm>
#include <cmath>

#include "runtime/config/batch_schedule.h"
#include "runtime/config/field_rules.h"
#include "runtime/config/number_field.h"
#include "runtime/config/train.pb.h"

namespace tessera {

namespace {

// More steps than a run can have. Not `steps`: a run that is made longer must not turn sparse.
constexpr int64_t kNever = 1000000000000;

int64_t share(int64_t steps, double fraction) {
  return std::llround(fraction * static_cast<double>(steps));
}

void resolve_model(ModelConfig& model) {
  if (model.head_dim() == 0 && model.heads() > 0 && model.hidden() % model.heads() == 0) {
    model.set_head_dim(model.hidden() / model.heads());
  }
  AttentionConfig& attention = *model.mutable_attention();
  // Both set is a contradiction that validate() tells.
  if (attention.has_global_groups()) return;
  const double ratio = attention.has_sparse_ratio() ? attention.sparse_ratio() : 0.9;
  if (!(ratio >= 0 && ratio <= 1)) return;
  const int64_t groups = std::llround((1 - ratio) * model.kv_heads());
  attention.set_global_groups(static_cast<int32_t>(std::max<int64_t>(1, groups)));
  attention.clear_sparse_ratio();
}

void resolve_schedule(ScheduleConfig& schedule, int64_t steps) {
  if (!schedule.has_warmup_steps()) schedule.set_warmup_steps(share(steps, 0.01));
  const bool decays = schedule.shape() == ScheduleConfig::WSD;
  if (!schedule.has_decay_steps()) schedule.set_decay_steps(decays ? share(steps, 0.2) : 0);
}

template <class Points>
void resolve_points(Points& points, int64_t steps) {
  for (auto& point : points) {
    // Both set is a contradiction that validate() tells.
    if (point.has_step()) continue;
    if (!(point.share() >= 0 && point.share() <= 1)) continue;
    point.set_step(1 + share(steps, point.share()));
    point.clear_share();
  }
}

void resolve_curriculum(CurriculumConfig& curriculum, int64_t steps) {
  resolve_points(*curriculum.mutable_sequence_length(), steps);
  resolve_points(*curriculum.mutable_sequences(), steps);
  resolve_points(*curriculum.mutable_difficulty(), steps);
  for (SourceConfig& source : *curriculum.mutable_sources()) {
    resolve_points(*source.mutable_weight(), steps);
  }
}

/// Stages that come before the one in which the run begins have no steps, unless somebody wants
/// some, which validate() tells.
void resolve_start(SparsityConfig& sparsity) {
  const auto start = sparsity.start();
  const bool warmup = sparsity.has_gate_warmup_steps();
  if (start == SparsityConfig::GATE_WARMUP && warmup && !sparsity.has_dense_steps()) {
    sparsity.set_dense_steps(sparsity.gate_warmup_steps());
  } else if (start == SparsityConfig::GATE_WARMUP && !warmup && sparsity.has_dense_steps()) {
    sparsity.set_gate_warmup_steps(sparsity.dense_steps());
  }
  if (start >= SparsityConfig::TRANSITION) {
    if (!sparsity.has_dense_steps()) sparsity.set_dense_steps(0);
    if (!warmup) sparsity.set_gate_warmup_steps(0);
  }
  if (start == SparsityConfig::TUNING && !sparsity.has_transition_steps()) {
    sparsity.set_transition_steps(0);
  }
}

/// Tokens that a stage was given become the steps that have as many.
void resolve_tokens(TrainConfig& config) {
  SparsityConfig& sparsity = *config.mutable_sparsity();
  // Steps and tokens both set is a contradiction that validate() tells.
  if (sparsity.has_dense_tokens() && !sparsity.has_dense_steps()) {
    sparsity.set_dense_steps(steps_of_tokens(config, 1, sparsity.dense_tokens()));
    sparsity.clear_dense_tokens();
  }
  if (sparsity.has_gate_warmup_tokens() && !sparsity.has_gate_warmup_steps()) {
    // The last steps of stage 1: the tokens before them are those of a shorter one.
    const int64_t wanted = sparsity.gate_warmup_tokens();
    const bool first = sparsity.start() == SparsityConfig::GATE_WARMUP;
    int64_t steps = first ? steps_of_tokens(config, 1, wanted) : 0;
    if (!first) steps = last_steps_of_tokens(config, sparsity.dense_steps(), wanted);
    sparsity.set_gate_warmup_steps(steps);
    sparsity.clear_gate_warmup_tokens();
  }
  resolve_start(sparsity);
  if (sparsity.has_transition_tokens() && !sparsity.has_transition_steps()) {
    const int64_t dense = std::clamp<int64_t>(sparsity.dense_steps(), 0, kNever);
    sparsity.set_transition_steps(steps_of_tokens(config, dense + 1, sparsity.transition_tokens()));
    sparsity.clear_transition_tokens();
  }
}

void resolve_sparsity(TrainConfig& config, int64_t steps) {
  SparsityConfig& sparsity = *config.mutable_sparsity();
  resolve_tokens(config);
  if (!sparsity.has_dense_steps()) sparsity.set_dense_steps(kNever);
  const int64_t dense = std::max<int64_t>(0, sparsity.dense_steps());  // or validation says so
  const int64_t left = steps > dense ? steps - dense : 0;              // 0: never sparse
  if (!sparsity.has_gate_warmup_steps()) {
    sparsity.set_gate_warmup_steps(left == 0 ? 0 : share(dense, 0.05));
  }
  if (!sparsity.has_transition_steps()) {
    sparsity.set_transition_steps(std::min(left, share(dense, 0.25)));
  }
  if (!sparsity.has_guard_limit()) sparsity.set_guard_limit(sparsity.transition_steps());
}

void resolve_gate_control(GateControlConfig& control, MonitorConfig& monitor) {
  if (!monitor.has_heat_map_every()) monitor.set_heat_map_every(10 * monitor.gate_every());
  const bool search = control.method() == GateControlConfig::SEARCH;
  if (!control.has_every()) control.set_every(search ? 1000 : 100);
}

}  // namespace

void resolve(TrainConfig& config) {
  for (const FieldRule& rule : field_rules()) {
    NumberField field(config, rule.path);
    if (rule.standard && field.reachable() && !field.is_set()) field.set(*rule.standard);
  }
  if (!config.has_seed()) config.set_seed(1);
  resolve_model(*config.mutable_model());
  const int64_t steps = std::max<int64_t>(0, config.steps());
  resolve_schedule(*config.mutable_schedule(), steps);
  if (config.has_curriculum()) resolve_curriculum(*config.mutable_curriculum(), steps);
  resolve_sparsity(config, steps);
  resolve_gate_control(*config.mutable_gate_control(), *config.mutable_monitor());
}

}  // namespace tessera
