#include "kernels/rms_norm.h"

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

void rms_norm_forward(Stream& stream, const RmsNormForward& a) {
  expect_floats(a.x, 2, "rms_norm_forward: x", "[tokens, dim]");
  const DType dtype = a.x.dtype();
  const Shape& shape = a.x.shape();
  expect_tensor(a.y, dtype, shape, "rms_norm_forward: y", "[tokens, dim]");
  expect_tensor(a.rstd, DType::kF32, {shape[0]}, "rms_norm_forward: rstd", "[tokens]");
  expect_tensor(a.weight, dtype, {shape[1]}, "rms_norm_forward: weight", "[dim]");
  CHECK(a.epsilon > 0, "rms_norm_forward: epsilon is ", a.epsilon, ", expected > 0");
  if (!a.residual.empty()) {
    expect_tensor(a.residual, dtype, shape, "rms_norm_forward: residual", "[tokens, dim]");
    CHECK(!a.h.empty(), "rms_norm_forward: h is missing, but residual is given");
  }
  if (!a.h.empty()) expect_tensor(a.h, dtype, shape, "rms_norm_forward: h", "[tokens, dim]");
  if (stream.on(DeviceKind::kCpu)) cpu::rms_norm_forward(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::rms_norm_forward(stream, a);
  }
}

void rms_norm_backward(Stream& stream, const RmsNormBackward& a) {
  expect_floats(a.h, 2, "rms_norm_backward: h", "[tokens, dim]");
  const DType dtype = a.h.dtype();
  const Shape& shape = a.h.shape();
  expect_tensor(a.dh, dtype, shape, "rms_norm_backward: dh", "[tokens, dim]");
  expect_tensor(a.dweight, DType::kF32, {shape[1]}, "rms_norm_backward: dweight", "[dim]");
  expect_tensor(a.dy, dtype, shape, "rms_norm_backward: dy", "[tokens, dim]");
  expect_tensor(a.weight, dtype, {shape[1]}, "rms_norm_backward: weight", "[dim]");
  expect_tensor(a.rstd, DType::kF32, {shape[0]}, "rms_norm_backward: rstd", "[tokens]");
  if (!a.dresidual.empty()) {
    expect_tensor(a.dresidual, dtype, shape, "rms_norm_backward: dresidual", "[tokens, dim]");
  }
  CHECK(shape[1] <= kRmsNormMaxDim, "rms_norm_backward: dim is ", shape[1], ", expected at most ",
        kRmsNormMaxDim);
  if (stream.on(DeviceKind::kCpu)) cpu::rms_norm_backward(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::rms_norm_backward(stream, a);
  }
}

}  // namespace tessera
