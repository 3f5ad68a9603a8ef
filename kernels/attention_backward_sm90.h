#pragma once

#include "kernels/attention.h"
#include "kernels/sparse_attention.h"

/// Backward of attention with the instructions of Hopper; only in builds with the CUDA backend.
namespace tessera::gpu {

/// The one place to go back to the kernels of sm_80 everywhere.
inline constexpr bool kBackwardBySm90 = true;

/// Whether these kernels compute a call: on a GPU of compute capability 9.0, of bf16 and heads of
/// 64 or 128 numbers, in groups of 1, 2, 4 or 8 all of which are in q; sparse ones not of 1.
bool sm90_takes(const Stream& stream, const AttentionBackward& a);
bool sm90_takes(const Stream& stream, const SparseAttentionBackward& a);
/// As attention_backward, of what sm90_takes; and with the kernels for all GPUs, for tests and
/// measurements to compare with.
void attention_backward_sm90(Stream& stream, const AttentionBackward& a);
void attention_backward_sm80(Stream& stream, const AttentionBackward& a);
/// The same of sparse_attention_backward, but for delta and dlog_gate: the one is there, the other
/// 0.
void attention_backward_sm90(Stream& stream, const SparseAttentionBackward& a);
void attention_backward_sm80(Stream& stream, const SparseAttentionBackward& a);

}  // namespace tessera::gpu
