#include "kernels/reduce.h"

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

namespace {

void check(const AddSum& a, const char* x, const char* total) {
  expect_floats(a.x, a.x.shape().rank(), x, "of any shape");
  expect_tensor(a.total, DType::kF64, {1}, total, "one number");
}

}  // namespace

void add_sum(Stream& stream, const AddSum& a) {
  check(a, "add_sum: x", "add_sum: total");
  if (stream.on(DeviceKind::kCpu)) cpu::add_sum(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::add_sum(stream, a);
  }
}

void add_sum_of_squares(Stream& stream, const AddSum& a) {
  check(a, "add_sum_of_squares: x", "add_sum_of_squares: total");
  if (stream.on(DeviceKind::kCpu)) cpu::add_sum_of_squares(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::add_sum_of_squares(stream, a);
  }
}

int64_t count_non_finite(Stream& stream, ConstTensorView x) {
  expect_floats(x, x.shape().rank(), "count_non_finite: x", "of any shape");
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) return gpu::count_non_finite(stream, x);
  }
  return stream.on(DeviceKind::kCpu) ? cpu::count_non_finite(stream.threads(), x) : 0;
}

}  // namespace tessera
