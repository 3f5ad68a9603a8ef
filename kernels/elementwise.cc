#include "kernels/elementwise.h"

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

void fill(Stream& stream, const Fill& a) {
  const DType dtype = a.x.dtype();
  CHECK(dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kI32, "fill: x is ",
        name_of(dtype), ", expected f32, bf16 or i32");
  if (stream.on(DeviceKind::kCpu)) cpu::fill(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::fill(stream, a);
  }
}

void cast(Stream& stream, const Cast& a) {
  expect_floats(a.y, a.y.shape().rank(), "cast: y", "of any shape");
  expect_floats(a.x, a.x.shape().rank(), "cast: x", "of any shape");
  CHECK(a.y.elements() == a.x.elements(), "cast: y is ", a.y.shape(),
        ", expected as many elements as x, ", a.x.shape());
  if (stream.on(DeviceKind::kCpu)) cpu::cast(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::cast(stream, a);
  }
}

void add(Stream& stream, const Add& a) {
  expect_floats(a.y, a.y.shape().rank(), "add: y", "of any shape");
  expect_tensor(a.a, a.y.dtype(), a.y.shape(), "add: a", "the shape of y");
  expect_tensor(a.b, a.y.dtype(), a.y.shape(), "add: b", "the shape of y");
  if (stream.on(DeviceKind::kCpu)) cpu::add(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::add(stream, a);
  }
}

void accumulate(Stream& stream, const Accumulate& a) {
  expect_floats(a.x, a.x.shape().rank(), "accumulate: x", "of any shape");
  expect_tensor(a.y, DType::kF32, a.x.shape(), "accumulate: y", "the shape of x");
  if (stream.on(DeviceKind::kCpu)) cpu::accumulate(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::accumulate(stream, a);
  }
}

void sigmoid_gate_forward(Stream& stream, const SigmoidGateForward& a) {
  const DType dtype = a.x.dtype();
  const Shape& shape = a.x.shape();
  expect_floats(a.x, 2, "sigmoid_gate_forward: x", "[tokens, dim]");
  expect_tensor(a.g, dtype, shape, "sigmoid_gate_forward: g", "[tokens, dim]");
  expect_tensor(a.y, dtype, shape, "sigmoid_gate_forward: y", "[tokens, dim]");
  if (stream.on(DeviceKind::kCpu)) cpu::sigmoid_gate_forward(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::sigmoid_gate_forward(stream, a);
  }
}

void sigmoid_gate_backward(Stream& stream, const SigmoidGateBackward& a) {
  const DType dtype = a.x.dtype();
  const Shape& shape = a.x.shape();
  expect_floats(a.x, 2, "sigmoid_gate_backward: x", "[tokens, dim]");
  expect_tensor(a.g, dtype, shape, "sigmoid_gate_backward: g", "[tokens, dim]");
  expect_tensor(a.dy, dtype, shape, "sigmoid_gate_backward: dy", "[tokens, dim]");
  expect_tensor(a.dx, dtype, shape, "sigmoid_gate_backward: dx", "[tokens, dim]");
  expect_tensor(a.dg, dtype, shape, "sigmoid_gate_backward: dg", "[tokens, dim]");
  if (stream.on(DeviceKind::kCpu)) cpu::sigmoid_gate_backward(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::sigmoid_gate_backward(stream, a);
  }
}

}  // namespace tessera
