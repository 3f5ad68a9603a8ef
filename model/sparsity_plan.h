#pragma once

#include "kernels/core/tensor_view.h"

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
  uint64_t draw = 0;  ///< number of the drawing, where blocks are chosen by chance
  /// [3], f32, (kl, entropy, z_loss) on the device: given, kernels read these when they run.
  ConstTensorView coefficients = {};
};

}  // namespace tessera
