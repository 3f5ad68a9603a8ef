#include "runtime/config/validate.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/error.h"
#include "runtime/config/batch_schedule.h"
#include "runtime/config/field_rules.h"
#include "runtime/config/number_field.h"
#include "runtime/config/train.pb.h"
#include "runtime/config/validate_curriculum.h"

namespace tessera {

namespace {

using Problems = std::vector<FieldProblem>;

template <class... Parts>
void require(bool condition, Problems& problems, const char* field, const Parts&... what) {
  if (!condition) problems.push_back({field, concat(what...)});
}

/// `field`, `value` of it, must be a multiple of `other`, whose value is `divisor`.
void require_multiple(Problems& problems, const char* field, int64_t value, const char* other,
                      int64_t divisor) {
  require(divisor > 0 && value % divisor == 0, problems, field, "is ", value,
          ", expected a multiple of ", other, " = ", divisor);
}

// Whole numbers without an exponent, others as short as they are exact to 6 digits.
std::string number(double value) {
  if (std::abs(value) < 1e18 && value == std::floor(value)) {
    return std::to_string(static_cast<int64_t>(value));
  }
  return concat(value);
}

std::string allowed(const FieldRule& rule) {
  if (rule.ends == FieldRule::Ends::kAboveLeast) {
    return concat("above ", number(rule.least), " and at most ", number(rule.most));
  }
  if (rule.ends == FieldRule::Ends::kBelowMost) {
    return concat("at least ", number(rule.least), " and below ", number(rule.most));
  }
  return concat(number(rule.least), " to ", number(rule.most));
}

bool holds(const FieldRule& rule, double value) {
  if (rule.ends == FieldRule::Ends::kAboveLeast && value == rule.least) return false;
  if (rule.ends == FieldRule::Ends::kBelowMost && value == rule.most) return false;
  return value >= rule.least && value <= rule.most;  // false for NaN
}

// A field that was left out and has no default: required, or not there.
bool may_be_unset(const std::string& path) {
  return path == "runtime.peak_tflops" || path == "model.attention.sparse_ratio" ||
         path == "model.attention.global_groups" || path == "model.head_dim" ||
         path == "sparsity.dense_tokens" || path == "sparsity.gate_warmup_tokens" ||
         path == "sparsity.transition_tokens";
}

void validate_ranges(const TrainConfig& config, Problems& problems) {
  TrainConfig copy = config;  // NumberField makes the messages on its way
  for (const FieldRule& rule : field_rules()) {
    const NumberField field(copy, rule.path);
    if (!field.reachable() || (!field.is_set() && may_be_unset(rule.path))) continue;
    const double value = field.get();
    if (holds(rule, value)) continue;
    const std::string found = field.is_set() ? "is " + number(value) : "is missing or 0";
    problems.push_back({rule.path, concat(found, ", expected ", allowed(rule))});
  }
  require(!config.run_dir().empty(), problems, "run_dir",
          "is missing, expected the directory for everything that the run writes");
  require(!config.data().path().empty(), problems, "data.path",
          "is missing, expected a directory made by tessera data prepare");
}

void validate_model(const ModelConfig& model, Problems& problems) {
  const bool all_experts = model.has_moe() && model.moe().dense_layers() == 0;
  require(model.head_dim() != 0, problems, "model.hidden", "is ", model.hidden(),
          ", expected a multiple of model.heads = ", model.heads(), "; or set model.head_dim");
  require(model.head_dim() % 2 == 0, problems, "model.head_dim", "is ", model.head_dim(),
          ", expected an even number, because rotary positions turn pairs");
  require_multiple(problems, "model.heads", model.heads(), "model.kv_heads", model.kv_heads());
  require(all_experts || model.intermediate() > 0, problems, "model.intermediate",
          "is missing or 0, expected the width of the dense feed-forward layers");
}

void validate_attention(const ModelConfig& model, Problems& problems) {
  const AttentionConfig& attention = model.attention();
  require(!attention.has_sparse_ratio() || !attention.has_global_groups(), problems,
          "model.attention.sparse_ratio",
          "is set, and so is global_groups = ", attention.global_groups(),
          "; take one of them away, with --set model.attention.global_groups= for example");
  require(attention.global_groups() <= model.kv_heads(), problems, "model.attention.global_groups",
          "is ", attention.global_groups(),
          ", expected at most model.kv_heads = ", model.kv_heads());
  require(attention.block() % 16 == 0, problems, "model.attention.block", "is ", attention.block(),
          ", expected a multiple of 16");
  require(attention.gate_keys() > 0 && attention.block() % attention.gate_keys() == 0, problems,
          "model.attention.gate_keys", "is ", attention.gate_keys(),
          ", expected a divisor of model.attention.block = ", attention.block());
  const int64_t radix = attention.tree_radix();
  require(radix == 4 || radix == 8 || radix == 16, problems, "model.attention.tree_radix", "is ",
          radix, ", expected 4, 8 or 16");
  require(attention.tree_beam() > 0 || radix == 8, problems, "model.attention.tree_radix", "is ",
          radix, ", but model.attention.tree_beam is 0, so there is no tree: set both or neither");
  require(attention.tree_beam() == 0 || attention.gate_keys() == 1, problems,
          "model.attention.tree_beam", "is ", attention.tree_beam(),
          ", expected 0 with model.attention.gate_keys = ", attention.gate_keys(),
          ": a tree needs one gate key per block");
}

/// What random choice of blocks leaves without an effect.
void validate_selection(const AttentionConfig& attention, Problems& problems) {
  if (attention.selection() != AttentionConfig::RANDOM) return;
  require(attention.tree_beam() == 0, problems, "model.attention.tree_beam", "is ",
          attention.tree_beam(), ", expected 0 with model.attention.selection = RANDOM");
  require(attention.global_groups() > 0, problems, "model.attention.selection",
          "is RANDOM, but model.attention.global_groups is 0, so nothing is chosen");
}

void validate_moe(const ModelConfig& model, Problems& problems) {
  if (!model.has_moe()) return;
  const MoeConfig& moe = model.moe();
  const bool sigmoid = moe.router() == MoeConfig::SIGMOID;
  require(moe.experts_per_token() <= moe.experts(), problems, "model.moe.experts_per_token", "is ",
          moe.experts_per_token(), ", expected at most model.moe.experts = ", moe.experts());
  require(moe.experts_per_token() != 1 || moe.router() == MoeConfig::SOFTMAX, problems,
          "model.moe.router", "is ", MoeConfig::RouterMode_Name(moe.router()),
          ", expected SOFTMAX: with experts_per_token = 1 a normalised weight is always 1 and the ",
          "router would not learn");
  require(moe.dense_layers() <= model.layers(), problems, "model.moe.dense_layers", "is ",
          moe.dense_layers(), ", expected at most model.layers = ", model.layers());
  require(sigmoid || moe.balance_bias_rate() == 0, problems, "model.moe.balance_bias_rate", "is ",
          moe.balance_bias_rate(), ", expected 0 unless model.moe.router is SIGMOID");
  require(sigmoid || moe.router_scale() == 1, problems, "model.moe.router_scale", "is ",
          moe.router_scale(), ", expected 1 unless model.moe.router is SIGMOID");
  // A token goes to an expert once, so the highest load is all tokens: E / k times the even one.
  const double highest_load = static_cast<double>(moe.experts()) / moe.experts_per_token();
  require(moe.capacity_factor() == 0 || moe.capacity_factor() < highest_load, problems,
          "model.moe.capacity_factor", "is ", moe.capacity_factor(),
          ", expected below experts / experts_per_token = ", highest_load,
          ", from where on no token is dropped; or 0");
}

void validate_steps(const TrainConfig& config, Problems& problems) {
  const ScheduleConfig& schedule = config.schedule();
  const SparsityConfig& sparsity = config.sparsity();
  const int64_t steps = config.steps();
  const auto total = static_cast<double>(steps) * config.batch().sequences() *
                     static_cast<double>(config.batch().sequence_length());
  // Tokens are counted in 64 bits; beyond 2^62 something is mistyped anyway.
  require(total < 0x1p62, problems, "steps", "is ", steps, ", expected steps x batch.sequences x ",
          "batch.sequence_length below 2^62 tokens");
  const bool decays = schedule.shape() == ScheduleConfig::WSD;
  require(schedule.warmup_steps() <= steps, problems, "schedule.warmup_steps", "is ",
          schedule.warmup_steps(), ", expected at most steps = ", steps);
  require(!decays || schedule.decay_steps() <= steps - schedule.warmup_steps(), problems,
          "schedule.decay_steps", "is ", schedule.decay_steps(),
          ", expected at most steps - schedule.warmup_steps = ", steps - schedule.warmup_steps());
  require(sparsity.gate_warmup_steps() <= sparsity.dense_steps(), problems,
          "sparsity.gate_warmup_steps", "is ", sparsity.gate_warmup_steps(),
          ", expected at most sparsity.dense_steps = ", sparsity.dense_steps());
  const int64_t left = steps - sparsity.dense_steps();
  require(left <= 0 || sparsity.transition_steps() <= left, problems, "sparsity.transition_steps",
          "is ", sparsity.transition_steps(),
          ", expected at most steps - sparsity.dense_steps = ", left);
  const CheckpointConfig& checkpoint = config.checkpoint();
  require(checkpoint.every() <= 0 || checkpoint.keep_every() % checkpoint.every() == 0, problems,
          "checkpoint.keep_every", "is ", checkpoint.keep_every(),
          ", expected a multiple of checkpoint.every = ", checkpoint.every());
}

void validate_monitor(const TrainConfig& config, Problems& problems) {
  const MonitorConfig& monitor = config.monitor();
  const GateControlConfig& control = config.gate_control();
  if (monitor.gate_every() > 0) {
    require_multiple(problems, "monitor.heat_map_every", monitor.heat_map_every(),
                     "monitor.gate_every", monitor.gate_every());
  } else {
    require(monitor.heat_map_every() == 0, problems, "monitor.heat_map_every", "is ",
            monitor.heat_map_every(),
            ", expected 0 as nothing is measured: monitor.gate_every is 0");
  }
  const bool measures = control.method() == GateControlConfig::KEPT_MASS ||
                        control.method() == GateControlConfig::LAGRANGIAN;
  if (measures && monitor.gate_every() == 0) {
    problems.push_back(
        {"monitor.gate_every",
         concat("is 0, but gate_control.method ", GateControlConfig::Method_Name(control.method()),
                " needs measures, expected a divisor of gate_control.every = ", control.every())});
  } else if (measures) {
    require_multiple(problems, "gate_control.every", control.every(), "monitor.gate_every",
                     monitor.gate_every());
  }
}

void validate_gate_control(const TrainConfig& config, Problems& problems) {
  const GateControlConfig& control = config.gate_control();
  const int budgets = control.budgets_size();
  require(budgets == 0 || budgets == config.model().layers(), problems, "gate_control.budgets",
          "has ", budgets,
          " numbers, expected one for each of model.layers = ", config.model().layers());
  for (const double budget : control.budgets()) {
    require(budget >= control.least() && budget <= control.most(), problems, "gate_control.budgets",
            "has ", budget, ", expected gate_control.least = ", control.least(),
            " to gate_control.most = ", control.most());
  }
  const bool priced = control.method() == GateControlConfig::LAGRANGIAN;
  require(!priced || (control.cost() >= control.least() && control.cost() <= control.most()),
          problems, "gate_control.cost", "is ", control.cost(),
          ", expected gate_control.least = ", control.least(),
          " to gate_control.most = ", control.most());
}

/// The end of a message about `value`, which does not divide `whole`: `; nearest: 2 or 4`.
std::string nearest_divisors(int64_t whole, int64_t value) {
  if (whole < 1) return "";
  int64_t below = std::min(value - 1, whole);
  while (below > 1 && whole % below != 0) --below;
  int64_t above = value + 1;
  while (above < whole && whole % above != 0) ++above;
  std::string text = below >= 1 ? concat(below) : "";
  if (above <= whole) text += concat(text.empty() ? "" : " or ", above);
  return "; nearest: " + text;
}

/// `field`, `value` of it, must be a divisor of `other`, whose value is `whole`.
void require_divisor(Problems& problems, const char* field, int64_t value, const std::string& other,
                     int64_t whole) {
  require(value > 0 && whole % value == 0, problems, field, "is ", value,
          ", expected a divisor of ", other, " = ", whole, nearest_divisors(whole, value));
}

void validate_sequence_axis(const TrainConfig& config, Problems& problems) {
  const int64_t ranks = config.mesh().sequence();
  const int64_t length = config.batch().sequence_length();
  const int64_t block = config.model().attention().block();
  if (config.mesh().sequence_order() == MeshConfig::ZIGZAG && ranks > 1) {
    const int64_t half = length / 2;
    require(length % (2 * ranks) == 0, problems, "mesh.sequence", "is ", ranks,
            ", expected a divisor of half of batch.sequence_length = ", length,
            " for sequence_order ZIGZAG", length % 2 == 0 ? nearest_divisors(half, ranks) : "");
  } else {
    require_divisor(problems, "mesh.sequence", ranks, "batch.sequence_length", length);
  }
  const int64_t blocks = std::max<int64_t>(1, length / std::max<int64_t>(1, block));
  require(ranks <= blocks, problems, "mesh.sequence", "is ", ranks,
          ", more sequence ranks than the ", blocks,
          " key blocks of a sequence, expected at most batch.sequence_length / "
          "model.attention.block = ",
          blocks);
}

/// `sequences` in a micro-batch.
void validate_tensor_axis(const TrainConfig& config, int64_t sequences, Problems& problems) {
  const ModelConfig& model = config.model();
  const int64_t ranks = config.mesh().tensor();
  require_divisor(problems, "mesh.tensor", ranks, "model.intermediate", model.intermediate());
  if (model.has_moe()) {
    require_divisor(problems, "mesh.tensor", ranks,
                    "model.moe.shared_experts x model.moe.intermediate",
                    int64_t{model.moe().shared_experts()} * model.moe().intermediate());
  }
  // Local groups are split at any head, but every rank needs one; global groups are not split.
  const int64_t local = int64_t{model.kv_heads()} - model.attention().global_groups();
  const int64_t heads = local * (model.heads() / std::max(1, model.kv_heads()));
  require(local == 0 || heads >= ranks, problems, "mesh.tensor", "is ", ranks,
          ", expected at most the ", heads, " query heads of local groups");
  const int64_t tokens =
      sequences * config.batch().sequence_length() / std::max(1, config.mesh().sequence());
  require_divisor(problems, "mesh.tensor", ranks, "the tokens of a micro-batch on a sequence rank",
                  tokens);
}

Problems validate_mesh_of_batch(const TrainConfig& config) {
  Problems problems;
  const MeshConfig& mesh = config.mesh();
  const BatchConfig& batch = config.batch();
  const int64_t batch_ranks = std::max<int64_t>(1, int64_t{mesh.data()} * mesh.expert());
  require_divisor(problems, "mesh.data x mesh.expert", batch_ranks, "batch.sequences",
                  batch.sequences());
  if (config.model().has_moe()) {
    require_divisor(problems, "mesh.expert", mesh.expert(), "model.moe.experts",
                    config.model().moe().experts());
  }
  const int64_t of_rank = batch.sequences() / batch_ranks;
  const int64_t micro = batch.micro_sequences();
  require(micro == 0 || of_rank % micro == 0, problems, "batch.micro_sequences", "is ", micro,
          ", expected a divisor of the ", of_rank, " sequences of each rank, or 0 for all of them",
          nearest_divisors(of_rank, micro));
  validate_sequence_axis(config, problems);
  validate_tensor_axis(config, micro == 0 ? of_rank : micro, problems);
  return problems;
}

}  // namespace

Problems validate(const TrainConfig& config) {
  Problems problems;
  validate_ranges(config, problems);
  // What fields say together is only worth saying when each of them is possible.
  if (!problems.empty()) return problems;
  validate_model(config.model(), problems);
  validate_attention(config.model(), problems);
  validate_selection(config.model().attention(), problems);
  validate_moe(config.model(), problems);
  validate_steps(config, problems);
  validate_monitor(config, problems);
  validate_gate_control(config, problems);
  for (const auto& check : {validate_stages, validate_curriculum, validate_hooks}) {
    const Problems more = check(config);
    problems.insert(problems.end(), more.begin(), more.end());
  }
  return problems;
}

Problems validate_mesh(const TrainConfig& config) {
  Problems problems = validate_mesh_of_batch(config);
  // The other batches of the curriculum, each as if it were the only one.
  const MeshConfig& mesh = config.mesh();
  const int64_t batch_ranks = std::max<int64_t>(1, int64_t{mesh.data()} * mesh.expert());
  const BatchSize full{config.batch().sequences(), config.batch().sequence_length()};
  for (const int64_t step : batch_changes(config)) {
    const BatchSize size = batch_size_at(config, step);
    if (!problems.empty() || size == full) continue;
    TrainConfig at = config;
    at.clear_curriculum();
    at.mutable_batch()->set_sequences(static_cast<int32_t>(size.sequences));
    at.mutable_batch()->set_sequence_length(size.sequence_length);
    const int64_t micro = micro_sequences_of(config, size, batch_ranks);
    const bool all = config.batch().micro_sequences() == 0;
    at.mutable_batch()->set_micro_sequences(all ? 0 : static_cast<int32_t>(micro));
    for (FieldProblem& problem : validate_mesh_of_batch(at)) {
      problem.what += concat("; so it is from step ", step, " on (curriculum)");
      problems.push_back(std::move(problem));
    }
  }
  return problems;
}

}  // namespace tessera
