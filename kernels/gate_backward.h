#pragma once

#include "kernels/block_selection.h"
#include "kernels/sparse_attention.h"

namespace tessera {

/// From the gradient of the log gates to that of the scores, for rows with a runner-up:
///   u = (z_ib - tau_i) / w;   du = strength [0 < u < 1] dlog_gate / G
///   dz_ib += du / w;   dz_runner_up -= sum_b du / w;   dw -= sum du u / w.
/// Source: dgsa definition 2.5.
struct RampBackward {
  TensorView dscores;         ///< in and out [groups, tokens, k + 1], f32; added to
  TensorView dwidths;         ///< in and out [groups], f32; added to
  ConstTensorView dlog_gate;  ///< [groups, tokens, k], f32
  BlockSelection selection;
  GateRamp ramp;
};
void ramp_backward(Stream& stream, const RampBackward& a);

/// From the gradient of the scores to that of gate queries and keys:
///   dqt_i = sum_b dz_ib kt_b / sqrt(gate_dim),   dkt_b = sum_i dz_ib qt_i / sqrt(gate_dim);
/// with several gate keys per block dz is first spread over them by their softmax weights.
/// Summed in token order: the same bits for any number of threads. Gate keys of blocks that no
/// token here chose get 0.
struct ScoreBackward {
  TensorView dqt;           ///< out [groups, tokens, gate_dim], f32; overwritten
  TensorView dkt;           ///< out [groups, max_blocks * gate_keys, gate_dim], f32; overwritten
  ConstTensorView dscores;  ///< [groups, tokens, k + 1], f32
  BlockSelection selection;
  ConstTensorView qt;  ///< as in ScoreSelect
  ConstTensorView kt;  ///< as in ScoreSelect
  const SegmentGrid& grid;
  int64_t gate_keys;
};
void score_backward(Stream& stream, const ScoreBackward& a);

namespace cpu {
void ramp_backward(ThreadPool& threads, const RampBackward& a);
void score_backward(ThreadPool& threads, const ScoreBackward& a);
}  // namespace cpu
namespace gpu {
void ramp_backward(Stream& stream, const RampBackward& a);
void score_backward(Stream& stream, const ScoreBackward& a);
}  // namespace gpu

}  // namespace tessera
