#pragma once

#include "kernels/sparse_attention.h"

namespace tessera {

/// Figures that tell how sparse a step was, summed over groups and tokens:
///   stats[0] += tokens seen (a token of each group counts once)
///   stats[1] += share of its visible blocks (own block and all before) that a token does not visit
///   stats[2] += chosen blocks
///   stats[3] += their gates G (GateRamp).
/// With a tree also how good its choice is, by a sample: of tokens that went through the tree and
/// whose position in the segment is the last of 1024,
///   stats[4] += chosen blocks that are also among the k best of all candidates
///   stats[5] += chosen blocks.
struct GateStats {
  static constexpr int64_t kSize = 6;
  static constexpr int64_t kSampled = 1024;

  TensorView stats;  ///< in and out [kSize], f32; added to
  BlockSelection selection;
  const SegmentGrid& grid;
  BlockRule rule;
  GateRamp ramp;
  TreeSearch tree = {};
  ConstTensorView qt = {};  ///< with a tree: as in ScoreSelect
  ConstTensorView kt = {};
};
void gate_stats(Stream& stream, const GateStats& a);

namespace cpu {
void gate_stats(ThreadPool& threads, const GateStats& a);
}
namespace gpu {
void gate_stats(Stream& stream, const GateStats& a);
}

}  // namespace tessera
