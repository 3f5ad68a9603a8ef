#pragma once

#include "kernels/sparse_attention.h"

namespace tessera {

/// Figures that tell how sparse a step was, summed over groups and tokens:
///   stats[0] += tokens seen (a token of each group counts once)
///   stats[1] += share of its visible blocks (own block and all before) that a token does not visit
///   stats[2] += chosen blocks
///   stats[3] += their gates G (GateRamp).
struct GateStats {
  TensorView stats;  ///< in and out [4], f32; added to
  BlockSelection selection;
  const SegmentGrid& grid;
  BlockRule rule;
  GateRamp ramp;
};
void gate_stats(Stream& stream, const GateStats& a);

namespace cpu {
void gate_stats(ThreadPool& threads, const GateStats& a);
}

}  // namespace tessera
