#include "runtime/config/field_rules.h"

namespace tessera {

namespace {

constexpr double kTokens = 16777216;      // 2^24: a vocabulary, a sequence
constexpr double kWidth = 1048576;        // 2^20
constexpr double kRanks = 65536;          // along one axis of the mesh
constexpr double kSteps = 1000000000000;  // 10^12
constexpr double kManyTokens = 1e18;      // of a stage
constexpr double kSeconds = 1e7;          // four months
constexpr double kCoefficient = 1000;     // of a loss
// Just below 1, so that the logarithm of a closed gate and its derivative stay bounded.
constexpr double kFullStrength = 1 - 0x1p-10;
constexpr auto kAbove = FieldRule::Ends::kAboveLeast;
constexpr auto kBelow = FieldRule::Ends::kBelowMost;

constexpr FieldRule kRules[] = {
    {"model.vocabulary", 2, kTokens},
    {"model.hidden", 1, kWidth},
    {"model.layers", 1, 4096},
    {"model.heads", 1, 4096},
    {"model.kv_heads", 1, 4096},
    {"model.head_dim", 2, 1024},
    {"model.intermediate", 0, kWidth},
    {"model.norm_epsilon", 0, 1, 1e-5, kAbove},
    {"model.rope_base", 1, 1e12, 10000, kAbove},
    {"model.tie_embeddings", 0, 1, 0},
    {"model.init_std", 0, 1, 0.02, kAbove},
    {"model.qk_norm", 0, 1, 0},
    {"model.output_gate", 0, 1, 0},
    {"model.smear_tokens", 0, 8, 0},
    {"model.attention.sparse_ratio", 0, 1},
    {"model.attention.global_groups", 0, 4096},
    {"model.attention.block", 16, 4096, 64},
    {"model.attention.gate_dim", 1, 4096, 64},
    {"model.attention.gate_keys", 1, 4096, 1},
    {"model.attention.window", 1, kTokens, 1024},
    {"model.attention.sink_tokens", 0, kTokens, 4},
    {"model.attention.sink_blocks", 0, kWidth, 1},
    {"model.attention.window_blocks", 1, kWidth, 2},
    {"model.attention.budget_factor", 0, 1024, 4, kAbove},
    {"model.attention.kept_blocks", 0, kWidth, 0},
    {"model.attention.sink_logit", 0, 1, 0},
    {"model.attention.gate_trunk_grad", 0, 1, 1},
    {"model.attention.tree_beam", 0, kWidth, 0},
    {"model.attention.tree_radix", 4, 16, 8},
    {"model.moe.experts", 1, 4096},
    {"model.moe.experts_per_token", 1, 4096},
    {"model.moe.intermediate", 1, kWidth},
    {"model.moe.shared_experts", 0, 4096},
    {"model.moe.dense_layers", 0, 4096},
    {"model.moe.router_scale", 0, kCoefficient, 1, kAbove},
    {"model.moe.balance_loss", 0, kCoefficient, 0.01},
    {"model.moe.z_loss", 0, kCoefficient, 0.001},
    {"model.moe.balance_bias_rate", 0, 1, 0},
    {"model.moe.capacity_factor", 0, 4096, 0},
    {"mesh.data", 0, kRanks, 0},
    {"mesh.expert", 1, kRanks, 1},
    {"mesh.sequence", 1, kRanks, 1},
    {"mesh.tensor", 1, kRanks, 1},
    {"data.document_boundaries", 0, 1, 1},
    {"data.max_documents", 1, kWidth, 64},
    {"batch.sequences", 1, kTokens},
    {"batch.micro_sequences", 0, kTokens, 0},
    {"batch.sequence_length", 2, kTokens},
    {"optimizer.learning_rate", 0, 10, {}, kAbove},
    {"optimizer.beta1", 0, 1, 0.9, kBelow},
    {"optimizer.beta2", 0, 1, 0.95, kBelow},
    {"optimizer.epsilon", 0, 1, 1e-8, kAbove},
    {"optimizer.weight_decay", 0, 10, 0.1},
    {"optimizer.clip_norm", 0, 1e9, 1},
    {"schedule.warmup_steps", 0, kSteps},
    {"schedule.final_fraction", 0, 1, 0.1},
    {"schedule.decay_steps", 0, kSteps},
    {"sparsity.dense_steps", 0, kSteps},
    {"sparsity.gate_warmup_steps", 0, kSteps},
    {"sparsity.transition_steps", 0, kSteps},
    {"sparsity.dense_refresh", 0, kSteps, 32},
    {"sparsity.kl", 0, kCoefficient, 1},
    {"sparsity.final_kl", 0, kCoefficient, 0.3},
    {"sparsity.entropy", 0, kCoefficient, 0.01},
    {"sparsity.z_loss", 0, kCoefficient, 1e-4},
    {"sparsity.dense_tokens", 0, kManyTokens},
    {"sparsity.gate_warmup_tokens", 0, kManyTokens},
    {"sparsity.transition_tokens", 0, kManyTokens},
    {"sparsity.guard_tolerance", 0, kCoefficient, 0.02},
    {"sparsity.guard_window", 2, kWidth, 32},
    {"sparsity.guard_limit", 0, kSteps},
    {"sparsity.strength", 0, kFullStrength, kFullStrength},
    {"sparsity.window_first", 0, 1, 0, kBelow},
    {"checkpoint.every", 0, kSteps, 1000},
    {"checkpoint.keep_last", 1, kWidth, 3},
    {"checkpoint.keep_every", 0, kSteps, 0},
    {"checkpoint.background", 0, 1, 1},
    {"checkpoint.check_replicas", 0, kSteps, 200},
    {"runtime.threads", 0, 4096, 0},
    {"runtime.log_every", 1, kSteps, 10},
    {"runtime.validate_every", 0, kSteps, 0},
    {"runtime.validate_batches", 1, kWidth, 8},
    {"runtime.peak_tflops", 0, 1e6, {}, kAbove},
    {"runtime.graphs", 0, 1, 1},
    {"watch.enabled", 0, 1, 1},
    {"watch.setup", 1, kSeconds, 900},
    {"watch.step", 1, kSeconds, 60},
    {"watch.validation", 1, kSeconds, 300},
    {"watch.checkpoint", 1, kSeconds, 300},
    {"watch.between", 1, kSeconds, 90},
    {"watch.stopped", 1, kSeconds, 20},
    {"watch.silence", 2, kSeconds, 15},
    {"watch.lease", 2, kSeconds, 20},
    {"watch.report", 1, kSeconds, 30},
    {"gate_control.every", 1, kSteps},
    {"gate_control.target", 0, 1, 0.98, kAbove},
    {"gate_control.rate", 0, 100, 2, kAbove},
    {"gate_control.least", 0, 1, 0.25, kAbove},
    {"gate_control.most", 1, 1024, 4},
    {"gate_control.tolerance", 0, 1, 0.005},
    {"gate_control.fixed_total", 0, 1, 1},
    {"gate_control.cost", 0, 1024, 1, kAbove},
    {"gate_control.price_rate", 0, 100, 0.5, kAbove},
    {"gate_control.spread", 0, 2, 0.2, kAbove},
    {"gate_control.probe_batches", 2, kWidth, 8},
    {"monitor.gate_every", 0, kSteps, 100},
    {"monitor.heat_map_every", 0, kSteps},
    {"monitor.sample_rows", 1, 512, 64},
    {"monitor.tensorboard", 0, 1, 1},
    {"monitor.experts_every", 0, kSteps, 100},
    {"steps", 1, kSteps},
};

}  // namespace

std::span<const FieldRule> field_rules() {
  return kRules;
}

}  // namespace tessera
