#pragma once

#include "kernels/core/tensor_view.h"

namespace tessera {

/// Sums in double over fixed chunks, then over the chunks in order: the same bits for any number
/// of threads. Results are on the host. On kPlan: 0.

/// sum_i x[i]. x is f32 or bf16.
double sum(Stream& stream, ConstTensorView x);

/// sum_i x[i]^2. Not finite when any x[i] is not.
double sum_of_squares(Stream& stream, ConstTensorView x);

/// How many x[i] are infinite or NaN.
int64_t count_non_finite(Stream& stream, ConstTensorView x);

namespace cpu {
double sum(ThreadPool& threads, const ConstTensorView& x);
double sum_of_squares(ThreadPool& threads, const ConstTensorView& x);
int64_t count_non_finite(ThreadPool& threads, const ConstTensorView& x);
}  // namespace cpu
namespace gpu {
double sum(Stream& stream, const ConstTensorView& x);
double sum_of_squares(Stream& stream, const ConstTensorView& x);
int64_t count_non_finite(Stream& stream, const ConstTensorView& x);
}  // namespace gpu

}  // namespace tessera
