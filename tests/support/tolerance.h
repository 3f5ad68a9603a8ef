#pragma once

#include <vector>

#include "kernels/core/dtype.h"

namespace tessera::support {

/// The dtypes that activations may have.
inline std::vector<DType> dtypes() {
  return {DType::kF32, DType::kBF16};
}

/// Largest error(actual, expected) of compare.h for a kernel whose output has this dtype. The error
/// is about half the square of the relative deviation: f32 may deviate by 4e-6, bf16 by 4e-3
/// (rounding alone gives 1.7e-3), and one flipped sign among n equal elements costs 2 / n.
inline double tolerance(DType dtype) {
  return dtype == DType::kBF16 ? 1e-5 : 1e-11;
}

}  // namespace tessera::support
