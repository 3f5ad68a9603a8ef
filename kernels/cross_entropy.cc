#include "kernels/cross_entropy.h"

#include "kernels/core/expect_tensor.h"

namespace tessera {

void cross_entropy(Stream& stream, const CrossEntropy& a) {
  expect_floats(a.logits, 2, "cross_entropy: logits", "[tokens, columns]");
  const Shape& shape = a.logits.shape();
  expect_tensor(a.losses, DType::kF32, {shape[0]}, "cross_entropy: losses", "[tokens]");
  expect_tensor(a.targets, DType::kI32, {shape[0]}, "cross_entropy: targets", "[tokens]");
  CHECK(a.vocabulary >= 1 && a.vocabulary <= shape[1], "cross_entropy: vocabulary is ",
        a.vocabulary, ", expected 1 to columns = ", shape[1]);
  if (!a.dlogits.empty()) {
    expect_floats(a.dlogits, 2, "cross_entropy: dlogits", "[tokens, columns]");
    CHECK(a.dlogits.shape() == shape, "cross_entropy: dlogits is ", a.dlogits.shape(),
          ", expected [tokens, columns] = ", shape);
    CHECK(a.dlogits.data() == nullptr || a.dlogits.data() != a.logits.data() ||
              a.dlogits.dtype() == a.logits.dtype(),
          "cross_entropy: dlogits is ", name_of(a.dlogits.dtype()), " and aliases logits in ",
          name_of(a.logits.dtype()));
  }
  if (stream.on(DeviceKind::kCpu)) cpu::cross_entropy(stream.threads(), a);
}

}  // namespace tessera
