#include "kernels/rope.h"

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

void rope(Stream& stream, const Rope& a) {
  expect_floats(a.x, 3, "rope: x", "[tokens, heads, d]");
  const int64_t d = a.x.shape()[2];
  CHECK(d % 2 == 0 && d <= kRopeMaxDim, "rope: d is ", d, ", expected even and at most ",
        kRopeMaxDim);
  expect_tensor(a.positions, DType::kI32, {a.x.shape()[0]}, "rope: positions", "[tokens]");
  CHECK(a.base > 1, "rope: base is ", a.base, ", expected > 1");
  if (stream.on(DeviceKind::kCpu)) cpu::rope(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::rope(stream, a);
  }
}

}  // namespace tessera
