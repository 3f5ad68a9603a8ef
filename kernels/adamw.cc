#include "kernels/adamw.h"

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

namespace {

void check(const AdamW& a) {
  const Shape& shape = a.master.shape();
  expect_floats(a.value, shape.rank(), "adamw: value", "of the shape of master");
  CHECK(a.value.shape() == shape, "adamw: value is ", a.value.shape(),
        ", expected the shape of master, ", shape);
  expect_tensor(a.master, DType::kF32, shape, "adamw: master", "any shape");
  expect_tensor(a.m, DType::kF32, shape, "adamw: m", "the shape of master");
  expect_tensor(a.v, DType::kF32, shape, "adamw: v", "the shape of master");
  expect_tensor(a.gradient, DType::kF32, shape, "adamw: gradient", "the shape of master");
  CHECK(a.step >= 1, "adamw: step is ", a.step, ", expected at least 1");
  CHECK(a.beta1 >= 0 && a.beta1 < 1 && a.beta2 >= 0 && a.beta2 < 1, "adamw: beta1 is ", a.beta1,
        " and beta2 is ", a.beta2, ", expected in [0, 1)");
  CHECK(a.rounding.first_index >= 0, "adamw: first_index is ", a.rounding.first_index,
        ", expected at least 0");
}

}  // namespace

void adamw(Stream& stream, const AdamW& a) {
  adamw(stream, std::span(&a, 1));
}

void adamw(Stream& stream, std::span<const AdamW> tensors) {
  for (const AdamW& a : tensors) check(a);
  if (stream.on(DeviceKind::kCpu)) {
    for (const AdamW& a : tensors) cpu::adamw(stream.threads(), a);
  }
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::adamw(stream, tensors);
  }
}

}  // namespace tessera
