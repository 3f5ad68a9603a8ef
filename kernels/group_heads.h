#pragma once

#include <span>

#include "kernels/core/tensor_view.h"

namespace tessera {

/// Copies the heads of some KV groups out of a [tokens, heads, d] tensor, one matrix per group:
///   y[c, t, :] = heads [groups[c] * g, (groups[c] + 1) * g) of x[t], side by side.
struct TakeGroups {
  TensorView y;                     ///< out [groups, tokens, g * d], dtype of x
  ConstTensorView x;                ///< [tokens, heads, d], f32 or bf16
  std::span<const int32_t> groups;  ///< group indices, each < heads / g
  int64_t group_heads;              ///< g, heads per group
};
void take_groups(Stream& stream, const TakeGroups& a);

/// The transpose: x[t, heads of groups[c]] += y[c, t, :].
struct AddGroups {
  TensorView x;       ///< in and out [tokens, heads, d]; added to
  ConstTensorView y;  ///< [groups, tokens, g * d], f32 or dtype of x
  std::span<const int32_t> groups;
  int64_t group_heads;
};
void add_groups(Stream& stream, const AddGroups& a);

namespace cpu {
void take_groups(ThreadPool& threads, const TakeGroups& a);
void add_groups(ThreadPool& threads, const AddGroups& a);
}  // namespace cpu
namespace gpu {
void take_groups(Stream& stream, const TakeGroups& a);
void add_groups(Stream& stream, const AddGroups& a);
}  // namespace gpu

}  // namespace tessera
