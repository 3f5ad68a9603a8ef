#pragma once

#include "kernels/segment_grid.h"

namespace tessera {

/// Pools the un-roped keys of each complete block (or of each of its gate_keys equal parts) by
/// learned softmax weights:
///   alpha_j = softmax_{j in part}(r . k0_j),   kbar = sum_j alpha_j k0_j.
/// r = 0 gives the mean. Rows of incomplete blocks and beyond the last block are 0.
/// On one of several ranks a block is pooled where its last token is a query: there all its keys
/// must be in one run. Elsewhere its rows of kbar are 0, so that the sum over the ranks is whole,
/// and so are alpha and dk0 of its keys. Rows of keys beyond the last run are not touched.
/// Source: dgsa definition 2.2.
struct GatePoolForward {
  /// out [groups, max_blocks * gate_keys, d], dtype of k0; max_blocks of whole segments, which may
  /// be more than those of a grid that has only some of their keys
  TensorView kbar;
  TensorView alpha;    ///< out [groups, keys], f32; 0 in incomplete blocks
  ConstTensorView k0;  ///< [groups, keys, d], f32 or bf16, without RoPE
  ConstTensorView r;   ///< [groups, d], f32
  const SegmentGrid& grid;
  int64_t gate_keys;  ///< per block; divides grid.block
};
void gate_pool_forward(Stream& stream, const GatePoolForward& a);

/// e_j = alpha_j (k0_j - kbar) . dkbar;  dk0_j = alpha_j dkbar + e_j r;  dr += sum_j e_j k0_j.
/// Keys of incomplete blocks get 0. An empty dk0 or dr is not computed.
struct GatePoolBackward {
  TensorView dk0;         ///< out [groups, keys, d], f32; overwritten
  TensorView dr;          ///< in and out [groups, d], f32; added to
  ConstTensorView dkbar;  ///< [groups, max_blocks * gate_keys, d], f32
  ConstTensorView kbar;   ///< as in forward
  ConstTensorView alpha;  ///< as in forward
  ConstTensorView k0;     ///< as in forward
  ConstTensorView r;      ///< as in forward
  const SegmentGrid& grid;
  int64_t gate_keys;
};
void gate_pool_backward(Stream& stream, const GatePoolBackward& a);

namespace cpu {
void gate_pool_forward(ThreadPool& threads, const GatePoolForward& a);
void gate_pool_backward(ThreadPool& threads, const GatePoolBackward& a);
}  // namespace cpu
namespace gpu {
void gate_pool_forward(Stream& stream, const GatePoolForward& a);
void gate_pool_backward(Stream& stream, const GatePoolBackward& a);
}  // namespace gpu

}  // namespace tessera
