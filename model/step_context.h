#pragma once

#include <functional>

#include "kernels/block_selection.h"
#include "kernels/core/arena.h"
#include "model/token_plan.h"
#include "parallel/process_mesh.h"

namespace tessera {

/// How the router's losses of one micro-batch count.
struct RouterPlan {
  float share = 1;  ///< of the micro-batch in the global batch, in (0, 1]
};

/// What the layers of one micro-batch add to, for this rank's tokens. Set to 0 by the owner.
struct StepSums {
  TensorView loss;           ///< [1], f64: sum of the losses of the tokens, nats
  TensorView hits = {};      ///< [1], f64: targets that no logit was above; of a forward alone
  TensorView squares;        ///< [1], f64: for sums of squares of gradients
  TensorView gate_losses;    ///< [3], f32: KL, entropy, z; weighted, so that they add to the loss
  TensorView gate_stats;     ///< [6], f32: see kernels/gate_stats.h
  TensorView router_losses;  ///< [2], f32: balance, z; weighted likewise
  TensorView dropped_pairs;  ///< [1], f32: (token, expert) pairs beyond an expert's capacity
  TensorView expert_counts;  ///< [moe layers, experts], f32: tokens that chose each expert
};

/// What the global groups of a layer chose for the tokens of this rank, on the device. Called in
/// the order of layers; the host has not waited for the device.
using SelectionObserver = std::function<void(const BlockSelection& selection)>;

/// What the global groups of a step that measures add to, set to 0 by the owner. Both are empty in
/// other steps.
struct GateSums {
  TensorView figures;  ///< [layers, groups, GateFigures::kSize], f32: see kernels/gate_measure.h
  TensorView maps;     ///< [layers, groups, 64, 65], f32; empty in steps without heat maps
};

/// While KV groups are tried out (runtime/choose): every group, global and local, attends both as
/// the step's plan says and to a window, and its output is a mixture of the two. For a rank that
/// has all of the model, in steps whose gates rest.
struct GroupMix {
  int64_t window;          ///< W of the second attention; sinks are those of local groups
  ConstTensorView shares;  ///< [layers, kv_heads], f32: what the first one has of the output
  TensorView slopes = {};  ///< [layers, kv_heads], f64: backward adds the gradient of shares
};

/// What every layer needs to run one micro-batch.
struct StepContext {
  Stream& stream;
  Arena& arena;
  const ProcessMesh& mesh;
  const TokenPlan& tokens;
  SparsityPlan sparsity;  ///< of the layer that runs
  const RouterPlan& router;
  StepSums& sums;
  bool recompute = false;  ///< second forward of a block: decisions are reused, nothing is counted
  /// Sees what the gates of a forward alone have chosen; optional.
  const SelectionObserver* on_selection = nullptr;
  int64_t layer = 0;
  GateSums gates = {};
  const GroupMix* mix = nullptr;  ///< optional
};

}  // namespace tessera
