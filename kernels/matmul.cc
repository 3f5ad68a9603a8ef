#include "kernels/matmul.h"

#include "kernels/core/build.h"

namespace tessera {

void matmul(Stream& stream, const Matmul& a) {
  CHECK(a.a.shape().rank() == 2 && a.b.shape().rank() == 2 && a.c.shape().rank() == 2,
        "matmul: a is ", a.a.shape(), ", b is ", a.b.shape(), ", c is ", a.c.shape(),
        ", expected three matrices");
  CHECK(a.a.dtype() == DType::kF32 || a.a.dtype() == DType::kBF16, "matmul: a is ",
        name_of(a.a.dtype()), ", expected f32 or bf16");
  CHECK(a.b.dtype() == a.a.dtype(), "matmul: b is ", name_of(a.b.dtype()),
        ", expected the dtype of a, ", name_of(a.a.dtype()));
  CHECK(a.c.dtype() == DType::kF32 || a.c.dtype() == DType::kBF16, "matmul: c is ",
        name_of(a.c.dtype()), ", expected f32 or bf16");
  const int64_t m = a.a.shape()[a.transpose_a ? 1 : 0];
  const int64_t k = a.a.shape()[a.transpose_a ? 0 : 1];
  const int64_t n = a.b.shape()[a.transpose_b ? 0 : 1];
  const Shape b = a.transpose_b ? Shape{n, k} : Shape{k, n};
  CHECK(a.b.shape() == b, "matmul: b is ", a.b.shape(), ", a is ", a.a.shape(),
        a.transpose_a ? " transposed" : "", ", expected b ",
        a.transpose_b ? "[n, k] = " : "[k, n] = ", b);
  CHECK((a.c.shape() == Shape{m, n}), "matmul: c is ", a.c.shape(),
        ", expected [m, n] = ", Shape{m, n});
  if (stream.on(DeviceKind::kCpu)) cpu::matmul(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::matmul(stream, a);
  }
}

}  // namespace tessera
