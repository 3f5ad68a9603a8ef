#pragma once

#include "runtime/train/step_plan.h"

namespace tessera {

class TrainConfig;

/// Learning rate of step `step` (counts from 1): linear warm-up, then
/// * cosine: half a cosine from the peak to final_fraction of it at the last step,
/// * WSD: the peak, then a straight line to final_fraction over the last decay_steps,
/// * constant: the peak.
double learning_rate(const TrainConfig& config, int64_t step);

/// The plan of step `step` (counts from 1) of a resolved configuration: learning rate, batch, data
/// and the three stages of sparsity, a pure function of both and of `held`, the steps for which the
/// transition has stood still until then (QualityGuard). n is the sequence length of the step.
///   dense:       steps 1 .. dense_steps, the last gate_warmup_steps of them with the KL loss
///   transition:  the next transition_steps + held; with x in (0, 1] the share done and
///                rho = x^2 (3 - 2 x):  k = ceil(k_max^(1 - rho) k_final^rho),
///                W = n^(1 - rho) W_final^rho,  lambda = rho sparsity.strength;
///                with f = sparsity.window_first > 0, W is as if x were min(1, x / f), and the rest
///                as if x were max(0, (x - f) / (1 - f));
///                every dense_refresh-th step attends to everything
///   tuning:      the rest, with k_final, W_final and lambda = sparsity.strength.
/// With attention.selection NONE nothing is ever gated: global groups see the window W as well.
/// Every monitor.gate_every-th step measures the gates, every heat_map_every-th with heat maps.
StepPlan plan_step(const TrainConfig& config, int64_t step, int64_t held = 0);

/// `plan`, which is gated, with everything visible to every token: what a dense refresh does.
void attend_to_everything(const TrainConfig& config, StepPlan& plan);

/// The same batch without gates, by the kernels of full attention, measuring nothing.
StepPlan full_attention(const TrainConfig& config, StepPlan plan);

}  // namespace tessera
