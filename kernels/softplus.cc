#include "kernels/softplus.h"

#include "kernels/core/build.h"

namespace tessera {

void softplus_forward(Stream& stream, const SoftplusForward& a) {
  CHECK(a.y.shape() == a.x.shape(), "softplus: y is ", a.y.shape(), ", expected the shape of x, ",
        a.x.shape());
  if (stream.on(DeviceKind::kCpu)) cpu::softplus_forward(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::softplus_forward(stream, a);
  }
}

void softplus_backward(Stream& stream, const SoftplusBackward& a) {
  CHECK(a.dx.shape() == a.x.shape() && a.dy.shape() == a.x.shape(), "softplus backward: dx is ",
        a.dx.shape(), " and dy is ", a.dy.shape(), ", expected the shape of x, ", a.x.shape());
  if (stream.on(DeviceKind::kCpu)) cpu::softplus_backward(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::softplus_backward(stream, a);
  }
}

}  // namespace tessera
