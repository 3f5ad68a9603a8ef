#pragma once

#include "kernels/attention.h"
#include "kernels/sparse_attention.h"

/// Backward of attention by the instructions of Hopper, for builds with the CUDA backend: dq, dk,
/// dv and the gates' gradient as of attention.h and sparse_attention.h, given `delta`. They take
/// bf16 with heads of 64 or 128 numbers, in whole groups of 1, 2, 4 or 8, sparse ones not of 1.
namespace tessera::gpu {

/// Whether they take this call: on a GPU of compute capability 9.0, by shapes alone.
bool sm90_takes(Stream& stream, const AttentionBackward& a);
bool sm90_takes(Stream& stream, const SparseAttentionBackward& a);

void attention_gradients_sm90(Stream& stream, const AttentionBackward& a);
/// dlog_gate is 0 before.
void attention_gradients_sm90(Stream& stream, const SparseAttentionBackward& a);

}  // namespace tessera::gpu
