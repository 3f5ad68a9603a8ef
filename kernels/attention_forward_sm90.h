#pragma once

#include "kernels/attention.h"
#include "kernels/sparse_attention.h"

/// Forward of attention with the instructions of Hopper; only in builds with the CUDA backend.
namespace tessera::gpu {

/// The one place to go back to the kernels of sm_80 everywhere.
inline constexpr bool kForwardBySm90 = true;

/// Whether these kernels compute a call: on a GPU of compute capability 9.0, of bf16 and heads of
/// 64 or 128 numbers, where each group has all of its heads in q and these are cut evenly.
bool sm90_takes(const Stream& stream, const AttentionForward& a);
bool sm90_takes(const Stream& stream, const SparseAttentionForward& a);
/// As attention_forward and sparse_attention_forward, of what sm90_takes.
void attention_forward_sm90(Stream& stream, const AttentionForward& a);
void attention_forward_sm90(Stream& stream, const SparseAttentionForward& a);

/// The kernels for all GPUs, for tests and measurements to compare with.
void attention_forward_sm80(Stream& stream, const AttentionForward& a);
void attention_forward_sm80(Stream& stream, const SparseAttentionForward& a);

}  // namespace tessera::gpu
