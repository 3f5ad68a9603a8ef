#pragma once

#include "kernels/core/arena.h"
#include "kernels/segment_grid.h"
#include "parallel/communicator.h"

namespace tessera {

/// How sparse attention is in one step. The coefficients of the gate's losses are per row already:
/// gamma / N, eta / N, zeta / N, with N the rows of the whole global batch that choose.
struct SparsityPlan {
  bool gated = false;  ///< false: global groups attend to everything and the gate rests
  int64_t kept = 0;    ///< k, blocks that a token may choose
  int64_t window = 0;  ///< W of local groups, tokens
  float strength = 0;  ///< lambda of the gate ramp
  float kl = 0;
  float entropy = 0;
  float z_loss = 0;
};

/// How the router's losses of one micro-batch count.
struct RouterPlan {
  float share = 1;  ///< of this rank's micro-batch in the global batch, in (0, 1]
  /// Ranks whose micro-batches form one scope of the balance loss, when its scope is global.
  Communicator* ranks = nullptr;
};

/// What the layers of one micro-batch add to. Set to 0 by the owner.
struct StepSums {
  TensorView gate_losses;    ///< [3], f32: KL, entropy, z; weighted, so that they add to the loss
  TensorView gate_stats;     ///< [4], f32: see kernels/gate_stats.h
  TensorView router_losses;  ///< [2], f32: balance, z; weighted likewise
  TensorView expert_counts;  ///< [moe layers, experts], f32: tokens that chose each expert
};

/// What every layer needs to run one micro-batch.
struct StepContext {
  Stream& stream;
  Arena& arena;
  const SegmentGrid& grid;
  const SparsityPlan& sparsity;
  const RouterPlan& router;
  StepSums& sums;
  int64_t sequences;       ///< rows of the micro-batch, of equal length
  bool recompute = false;  ///< second forward of a block: decisions are reused, nothing is counted
};

}  // namespace tessera
