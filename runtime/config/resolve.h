#pragma once

namespace tessera {

class TrainConfig;

/// Fills everything that was left out, so that the configuration says all that the run does:
///   constants                        the defaults of field_rules()
///   model.head_dim                   hidden / heads
///   model.attention.global_groups    max(1, round((1 - sparse_ratio) kv_heads)), sparse_ratio 0.9;
///                                    sparse_ratio itself is taken away: one fact, one field
///   schedule.warmup_steps            1% of steps
///   schedule.decay_steps             20% of steps (WSD; 0 for other shapes)
///   sparsity.dense_steps             10^12: never sparse, however long the run is made
///   sparsity.gate_warmup_steps       5% of dense_steps (0 when never sparse)
///   sparsity.transition_steps        25% of dense_steps, at most what is left of steps
///   sparsity.*_tokens                become the steps that have as many, and are taken away
///   sparsity.start                   stages before it get 0 steps; stage 1 of GATE_WARMUP is its
///                                    gate_warmup_steps
///   sparsity.guard_limit             transition_steps
///   curriculum: points               `share` becomes step 1 + share x steps
///   gate_control.every               100, for SEARCH 1000
///   monitor.heat_map_every           10 monitor.gate_every
/// Left to the start of the run: mesh.data, batch.micro_sequences and runtime.threads may be 0
/// (resolve_mesh), runtime.peak_tflops unset is unknown. Resolving twice changes nothing.
/// Never throws: what makes no sense is left for validate().
void resolve(TrainConfig& config);

}  // namespace tessera
