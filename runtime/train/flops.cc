#include "runtime/train/flops.h"

#include <algorithm>

#include "model/sparsity_budget.h"
#include "runtime/config/train.pb.h"

namespace tessera {

namespace {

// Mean over i = 1 .. n of min(i, visible).
double mean_keys(double n, double visible) {
  if (visible >= n) return (n + 1) / 2;
  return visible * (1 - (visible - 1) / (2 * n));
}

// Over the layers.
double mean_kept(const StepPlan& plan) {
  if (plan.kept_of_layers.empty()) return static_cast<double>(plan.kept_blocks);
  double sum = 0;
  for (const int64_t kept : plan.kept_of_layers) sum += static_cast<double>(kept);
  return sum / static_cast<double>(plan.kept_of_layers.size());
}

}  // namespace

double flops_per_token(const TrainConfig& config, const StepPlan& plan, int64_t active_parameters) {
  const ModelConfig& model = config.model();
  const AttentionConfig& attention = model.attention();
  const int64_t length = plan.sequence_length;
  const auto n = static_cast<double>(length > 0 ? length : config.batch().sequence_length());
  const double global =
      static_cast<double>(global_groups(model)) / static_cast<double>(model.kv_heads());
  const double chosen =
      (mean_kept(plan) + attention.sink_blocks() + attention.window_blocks()) * attention.block();
  const double global_keys = mean_keys(n, plan.gated ? chosen : n);
  const double local_keys =
      mean_keys(n, std::min(n, static_cast<double>(plan.window + attention.sink_tokens())));
  const double keys = global * global_keys + (1 - global) * local_keys;
  const int64_t head_dim = model.head_dim() > 0 ? model.head_dim() : model.hidden() / model.heads();
  const double heads = static_cast<double>(model.layers()) * model.heads();
  return 6 * static_cast<double>(active_parameters) +
         12 * heads * static_cast<double>(head_dim) * keys;
}

}  // namespace tessera
