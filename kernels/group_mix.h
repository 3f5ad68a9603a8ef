#pragma once

#include "kernels/core/tensor_view.h"

namespace tessera {

/// Each KV group's heads as a mixture of two, with w_c = shares[c] and head h in group c = h / g:
///   y[t, h, :] = w_c a[t, h, :] + (1 - w_c) b[t, h, :], computed in f32.
struct MixGroups {
  TensorView y;            ///< out [tokens, heads, d], f32 or bf16
  ConstTensorView a;       ///< [tokens, heads, d], dtype of y
  ConstTensorView b;       ///< [tokens, heads, d], dtype of y
  ConstTensorView shares;  ///< [groups], f32; groups divides heads
};
void mix_groups(Stream& stream, const MixGroups& a);

/// Gradient of sum(dy * mix_groups(a, b, shares)):
///   da = w_c dy,  db = (1 - w_c) dy,
///   slopes[c, t] = sum over heads h of c and i of dy[t, h, i] (a[t, h, i] - b[t, h, i]).
/// The sum of slopes[c, :] is the gradient of shares[c].
struct MixGroupsBackward {
  TensorView da;           ///< out [tokens, heads, d], dtype of dy; overwritten; may alias dy
  TensorView db;           ///< out [tokens, heads, d], dtype of dy; overwritten
  TensorView slopes;       ///< out [groups, tokens], f32; overwritten
  ConstTensorView dy;      ///< [tokens, heads, d], f32 or bf16
  ConstTensorView a;       ///< as in forward
  ConstTensorView b;       ///< as in forward
  ConstTensorView shares;  ///< as in forward
};
void mix_groups_backward(Stream& stream, const MixGroupsBackward& a);

namespace cpu {
void mix_groups(ThreadPool& threads, const MixGroups& a);
void mix_groups_backward(ThreadPool& threads, const MixGroupsBackward& a);
}  // namespace cpu
namespace gpu {
void mix_groups(Stream& stream, const MixGroups& a);
void mix_groups_backward(Stream& stream, const MixGroupsBackward& a);
}  // namespace gpu

}  // namespace tessera
