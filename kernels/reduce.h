#pragma once

#include "kernels/core/tensor_view.h"

namespace tessera {

// Sums in double over fixed chunks, then over the chunks in order: the same bits for any number of
// threads. Sums stay on the device, so that nobody has to wait for them.

/// total[0] += sum_i x[i].
struct AddSum {
  TensorView total;   ///< in and out [1], f64
  ConstTensorView x;  ///< f32 or bf16, any shape
};
void add_sum(Stream& stream, const AddSum& a);
/// total[0] += sum_i x[i]^2: not finite when any x[i] is not.
void add_sum_of_squares(Stream& stream, const AddSum& a);

/// How many x[i] are infinite or NaN; f32 or bf16. Waits for it. On kPlan: 0.
int64_t count_non_finite(Stream& stream, ConstTensorView x);

namespace cpu {
void add_sum(ThreadPool& threads, const AddSum& a);
void add_sum_of_squares(ThreadPool& threads, const AddSum& a);
int64_t count_non_finite(ThreadPool& threads, const ConstTensorView& x);
}  // namespace cpu
namespace gpu {
void add_sum(Stream& stream, const AddSum& a);
void add_sum_of_squares(Stream& stream, const AddSum& a);
int64_t count_non_finite(Stream& stream, const ConstTensorView& x);
}  // namespace gpu

}  // namespace tessera
