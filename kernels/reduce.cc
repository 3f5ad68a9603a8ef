#include "kernels/reduce.h"

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

double sum(Stream& stream, ConstTensorView x) {
  expect_floats(x, x.shape().rank(), "sum: x", "of any shape");
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) return gpu::sum(stream, x);
  }
  return stream.on(DeviceKind::kCpu) ? cpu::sum(stream.threads(), x) : 0;
}

double sum_of_squares(Stream& stream, ConstTensorView x) {
  expect_floats(x, x.shape().rank(), "sum_of_squares: x", "of any shape");
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) return gpu::sum_of_squares(stream, x);
  }
  return stream.on(DeviceKind::kCpu) ? cpu::sum_of_squares(stream.threads(), x) : 0;
}

int64_t count_non_finite(Stream& stream, ConstTensorView x) {
  expect_floats(x, x.shape().rank(), "count_non_finite: x", "of any shape");
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) return gpu::count_non_finite(stream, x);
  }
  return stream.on(DeviceKind::kCpu) ? cpu::count_non_finite(stream.threads(), x) : 0;
}

}  // namespace tessera
