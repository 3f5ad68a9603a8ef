#pragma once

#include <span>

#include "kernels/sparse_attention.h"

namespace tessera {

/// Places of the figures of one global group, sums that three kernels add to. Ranks and
/// micro-batches add theirs up; what they mean together is said in docs/gate_control.md.
struct GateFigures {
  static constexpr int64_t kDistances = 20;
  enum Place : uint8_t {
    // measure_gate_rows, over the sampled rows
    kRows,      ///< how many
    kKept,      ///< kept mass, mean over heads
    kSink,      ///< attended mass, mean over heads
    kWindow,    ///< likewise
    kSelected,  ///< likewise
    kChoosing,  ///< rows with |S_i| >= 2; the next two are sums over them
    kEntropy,
    kKl,
    kDropping,  ///< rows with a runner-up; the next two are sums over them
    kMargin,
    kRamped,  ///< share of the row's chosen blocks with G < 1
    // measure_gate_lists, over all tokens
    kTiles,         ///< tiles with a token
    kUnion,         ///< their list entries
    kExecuted,      ///< list entries x tokens of the tile
    kChosen,        ///< chosen blocks
    kCandidatesAt,  ///< [20] candidates by distance, of tokens that dropped a block
    kChosenAt = kCandidatesAt + kDistances,  ///< [20] those of them that were chosen
    // measure_gate_blocks
    kBlocks = kChosenAt + kDistances,  ///< blocks that at least kFewest tokens could choose or drop
    kNever,                            ///< of them: chosen by none of these tokens
    kHot,                              ///< of them: chosen by at least half of these tokens
    kSize
  };
  static constexpr int64_t kFewest = 64;
};

/// Bins of a heat map along either side. A map has a column more, for the rows that it sums up.
inline constexpr int64_t kMapBins = 64;

/// What some rows of an attention of global groups attend to. For a sampled row i and a head h,
/// with s_ij = scale q_i . k_j, L_i the result of the attention, own block o and j <= i:
///   full      F = log(exp(a_h) + sum_j exp s_ij)
///   kept      exp(a_h - F) + sum_{j attended} exp(s_ij - F): without the gates
///   attended  P_j = G_{i, block(j)} exp(s_ij - L_i)
/// A block is of the window if it is after o - window_blocks, else of the sink if it is one of the
/// first sink_blocks, else selected. While the gate rests every block is attended to with G = 1,
/// and all others count as selected. With p = softmax_{S_i}(z), t as in kernels/gate_loss.h and u
/// as in GateRamp:
///   entropy  -sum p log p      KL  sum t log(t / p)
///   margin   min_{S_i} z - tau      ramped  share of S_i with u < 1.
/// A row is added to map row floor(64 x / n), x: its position in its sequence of n tokens, and a
/// key to the column of its own position; the last column counts rows.
struct MeasureGateRows {
  TensorView figures;       ///< in and out [groups, GateFigures::kSize], f32; added to
  TensorView map;           ///< in and out [groups, 64, 65], f32; added to; or empty
  ConstTensorView samples;  ///< [samples, 2], i32: row of q, position in the sequence
  int64_t sequence_length;
  ConstTensorView q;    ///< [tokens, heads, d], as the attention had it
  ConstTensorView k;    ///< [keys, kv_heads, d]; of each segment one run from position 0 on
  ConstTensorView lse;  ///< [heads, tokens], f32: L
  const SegmentGrid& grid;
  std::span<const int32_t> groups;
  BlockRule rule;  ///< of a resting gate: kept does not matter
  float scale;
  ConstTensorView sink_logits = {};  ///< [heads], f32; or empty
  BlockSelection selection = {};     ///< empty while the gate rests; then so are these:
  ConstTensorView block_lse = {};    ///< [groups, tokens, g, k], f32
  GateRamp ramp = {};
};
void measure_gate_rows(Stream& stream, const MeasureGateRows& a);

/// Counts the lists of all tokens, and by block how often it was chosen. Of a token that dropped a
/// block, the candidates at distance bin b are the blocks with 2^b <= o - block < 2^(b + 1).
struct MeasureGateLists {
  TensorView figures;  ///< in and out [groups, GateFigures::kSize], f32; added to
  /// out [groups, max_blocks, 2], f32: tokens here that dropped a block and had this one as a
  /// candidate, and those of them that chose it. Ranks that share the segments add theirs up.
  TensorView counts;
  BlockLists lists;
  const SegmentGrid& grid;
  BlockRule rule;
};
void measure_gate_lists(Stream& stream, const MeasureGateLists& a);

/// Adds blocks, never selected and hot ones, from counts of all tokens of the segments.
struct MeasureGateBlocks {
  TensorView figures;      ///< in and out [groups, GateFigures::kSize], f32; added to
  ConstTensorView counts;  ///< [groups, max_blocks, 2], f32
};
void measure_gate_blocks(Stream& stream, const MeasureGateBlocks& a);

namespace cpu {
void measure_gate_rows(ThreadPool& threads, const MeasureGateRows& a);
void measure_gate_lists(ThreadPool& threads, const MeasureGateLists& a);
void measure_gate_blocks(ThreadPool& threads, const MeasureGateBlocks& a);
}  // namespace cpu
namespace gpu {
void measure_gate_rows(Stream& stream, const MeasureGateRows& a);
void measure_gate_lists(Stream& stream, const MeasureGateLists& a);
void measure_gate_blocks(Stream& stream, const MeasureGateBlocks& a);
}  // namespace gpu

}  // namespace tessera
