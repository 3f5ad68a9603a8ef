#pragma once

#include "kernels/core/tensor_view.h"

namespace tessera {

/// Throws unless `x` has this dtype and shape:
///   "score_select: qt is bf16 [1, 4, 8], expected f32 [groups, tokens, gate_dim] = [1, 4, 16]".
/// `what` names kernel and tensor, `axes` the extents.
inline void expect_tensor(const ConstTensorView& x, DType dtype, const Shape& shape,
                          const char* what, const char* axes) {
  CHECK(x.dtype() == dtype && x.shape() == shape, what, " is ", name_of(x.dtype()), " ", x.shape(),
        ", expected ", name_of(dtype), " ", axes, " = ", shape);
}

/// Throws unless `x` is f32 or bf16 and has `rank` axes.
inline void expect_floats(const ConstTensorView& x, int rank, const char* what, const char* axes) {
  CHECK((x.dtype() == DType::kF32 || x.dtype() == DType::kBF16) && x.shape().rank() == rank, what,
        " is ", name_of(x.dtype()), " ", x.shape(), ", expected f32 or bf16 ", axes);
}

}  // namespace tessera
