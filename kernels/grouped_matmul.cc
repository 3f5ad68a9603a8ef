#include "kernels/grouped_matmul.h"

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

namespace {

void expect_rows(const ConstTensorView& x, const char* what, const char* axes) {
  CHECK(x.shape().rank() == 2, what, " is ", x.shape(), ", expected ", axes);
  CHECK(x.dtype() == DType::kF32 || x.dtype() == DType::kBF16, what, " is ", name_of(x.dtype()),
        ", expected f32 or bf16");
}

}  // namespace

void grouped_matmul(Stream& stream, const GroupedMatmul& a) {
  expect_rows(a.a, "grouped_matmul: a", "[rows, k]");
  expect_rows(a.c, "grouped_matmul: c", "[rows, n]");
  const int64_t rows = a.a.shape()[0];
  const int64_t k = a.a.shape()[1];
  const int64_t n = a.c.shape()[1];
  CHECK(a.c.shape()[0] == rows, "grouped_matmul: c is ", a.c.shape(), ", a is ", a.a.shape(),
        ", expected as many rows");
  CHECK(a.offsets.shape().rank() == 1 && a.offsets.shape()[0] >= 1, "grouped_matmul: offsets is ",
        a.offsets.shape(), ", expected [groups + 1]");
  const int64_t groups = a.offsets.shape()[0] - 1;
  expect_tensor(a.offsets, DType::kI32, {groups + 1}, "grouped_matmul: offsets", "[groups + 1]");
  expect_tensor(a.b, a.a.dtype(), a.transpose_b ? Shape{groups, n, k} : Shape{groups, k, n},
                "grouped_matmul: b", a.transpose_b ? "[groups, n, k]" : "[groups, k, n]");
  if (stream.on(DeviceKind::kCpu)) cpu::grouped_matmul(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::grouped_matmul(stream, a);
  }
}

void grouped_matmul_weight(Stream& stream, const GroupedMatmulWeight& a) {
  expect_rows(a.a, "grouped_matmul_weight: a", "[rows, n]");
  expect_rows(a.b, "grouped_matmul_weight: b", "[rows, k]");
  const int64_t n = a.a.shape()[1];
  const int64_t k = a.b.shape()[1];
  expect_tensor(a.b, a.a.dtype(), {a.a.shape()[0], k}, "grouped_matmul_weight: b", "[rows, k]");
  CHECK(a.offsets.shape().rank() == 1 && a.offsets.shape()[0] >= 1,
        "grouped_matmul_weight: offsets is ", a.offsets.shape(), ", expected [groups + 1]");
  const int64_t groups = a.offsets.shape()[0] - 1;
  expect_tensor(a.offsets, DType::kI32, {groups + 1}, "grouped_matmul_weight: offsets",
                "[groups + 1]");
  expect_tensor(a.c, DType::kF32, {groups, n, k}, "grouped_matmul_weight: c", "[groups, n, k]");
  if (stream.on(DeviceKind::kCpu)) cpu::grouped_matmul_weight(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::grouped_matmul_weight(stream, a);
  }
}

}  // namespace tessera
