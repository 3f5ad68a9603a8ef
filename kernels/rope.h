#pragma once

#include "kernels/core/tensor_view.h"

namespace tessera {

/// Largest head dimension d of rope.
inline constexpr int64_t kRopeMaxDim = 1024;

/// Rotary position embedding, half-split layout (as Llama in Hugging Face): for i < d / 2,
///   (x[i], x[i + d/2]) is rotated by the angle positions[t] * base^(-2 i / d).
/// The inverse rotates back and is the backward of the forward.
/// Source: Su et al. 2021, arXiv:2104.09864.
struct Rope {
  TensorView x;               ///< in and out [tokens, heads, d], f32 or bf16; d even
  ConstTensorView positions;  ///< [tokens], i32
  float base;                 ///< > 1
  bool inverse = false;
};
void rope(Stream& stream, const Rope& a);

namespace cpu {
void rope(ThreadPool& threads, const Rope& a);
}
namespace gpu {
void rope(Stream& stream, const Rope& a);
}

}  // namespace tessera
