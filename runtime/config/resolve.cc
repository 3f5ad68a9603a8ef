#include "runtime/config/resolve.h"

#include <algorithm>
#include <cmath>

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

void resolve_sparsity(SparsityConfig& sparsity, int64_t steps) {
  if (!sparsity.has_dense_steps()) sparsity.set_dense_steps(kNever);
  const int64_t dense = std::max<int64_t>(0, sparsity.dense_steps());  // or validation says so
  const int64_t left = steps > dense ? steps - dense : 0;              // 0: never sparse
  if (!sparsity.has_gate_warmup_steps()) {
    sparsity.set_gate_warmup_steps(left == 0 ? 0 : share(dense, 0.05));
  }
  if (!sparsity.has_transition_steps()) {
    sparsity.set_transition_steps(std::min(left, share(dense, 0.25)));
  }
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
  resolve_sparsity(*config.mutable_sparsity(), steps);
  resolve_gate_control(*config.mutable_gate_control(), *config.mutable_monitor());
}

}  // namespace tessera
