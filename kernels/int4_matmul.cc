#include "kernels/int4_matmul.h"

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

void int4_matmul(Stream& stream, const Int4Matmul& a) {
  expect_floats(a.a, 2, "int4_matmul: a", "[rows, k]");
  expect_floats(a.c, 2, "int4_matmul: c", "[rows, n]");
  const int64_t rows = a.a.shape()[0];
  CHECK(a.c.shape()[0] == rows, "int4_matmul: c is ", a.c.shape(), ", a is ", a.a.shape(),
        ", expected as many rows");
  CHECK(a.w.codes.shape().rank() == 3, "int4_matmul: codes is ", a.w.codes.shape(),
        ", expected [groups, n, k / 2]");
  const int64_t groups = a.offsets.empty() ? 1 : a.w.groups();
  check_int4(a.w, groups, a.c.shape()[1], a.a.shape()[1], "int4_matmul");
  if (!a.offsets.empty()) {
    expect_tensor(a.offsets, DType::kI32, {groups + 1}, "int4_matmul: offsets", "[groups + 1]");
  }
  if (rows == 0) return;
  if (stream.on(DeviceKind::kCpu)) cpu::int4_matmul(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::int4_matmul(stream, a);
  }
}

}  // namespace tessera
