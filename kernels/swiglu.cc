#include "kernels/swiglu.h"

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

void swiglu_forward(Stream& stream, const SwigluForward& a) {
  expect_floats(a.gate_up, 2, "swiglu_forward: gate_up", "[rows, 2 * dim]");
  const int64_t rows = a.gate_up.shape()[0];
  const int64_t width = a.gate_up.shape()[1];
  CHECK(width % 2 == 0, "swiglu_forward: gate_up is ", a.gate_up.shape(),
        ", expected [rows, 2 * dim]");
  expect_tensor(a.y, a.gate_up.dtype(), {rows, width / 2}, "swiglu_forward: y", "[rows, dim]");
  if (!a.row_weight.empty()) {
    expect_tensor(a.row_weight, DType::kF32, {rows}, "swiglu_forward: row_weight", "[rows]");
  }
  if (stream.on(DeviceKind::kCpu)) cpu::swiglu_forward(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::swiglu_forward(stream, a);
  }
}

void swiglu_backward(Stream& stream, const SwigluBackward& a) {
  expect_floats(a.gate_up, 2, "swiglu_backward: gate_up", "[rows, 2 * dim]");
  const DType dtype = a.gate_up.dtype();
  const int64_t rows = a.gate_up.shape()[0];
  const int64_t width = a.gate_up.shape()[1];
  CHECK(width % 2 == 0, "swiglu_backward: gate_up is ", a.gate_up.shape(),
        ", expected [rows, 2 * dim]");
  expect_tensor(a.dgate_up, dtype, a.gate_up.shape(), "swiglu_backward: dgate_up",
                "[rows, 2 * dim]");
  expect_tensor(a.dy, dtype, {rows, width / 2}, "swiglu_backward: dy", "[rows, dim]");
  CHECK(a.row_weight.empty() == a.drow_weight.empty(), "swiglu_backward: row_weight is ",
        a.row_weight.empty() ? "missing" : "given", ", but drow_weight is ",
        a.drow_weight.empty() ? "missing" : "given");
  if (!a.row_weight.empty()) {
    expect_tensor(a.row_weight, DType::kF32, {rows}, "swiglu_backward: row_weight", "[rows]");
    expect_tensor(a.drow_weight, DType::kF32, {rows}, "swiglu_backward: drow_weight", "[rows]");
  }
  if (!a.y.empty())
    expect_tensor(a.y, dtype, {rows, width / 2}, "swiglu_backward: y", "[rows, dim]");
  if (stream.on(DeviceKind::kCpu)) cpu::swiglu_backward(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::swiglu_backward(stream, a);
  }
}

}  // namespace tessera
