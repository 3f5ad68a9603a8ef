#include "kernels/token_smear.h"

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"
#include "kernels/embedding.h"

namespace tessera {

namespace {

/// What both directions have; `rows` is y or dy.
template <class Args>
void expect_arguments(const Args& a, const ConstTensorView& rows, const char* what,
                      const char* name) {
  const auto named = [what](const char* tensor) { return concat(what, ": ", tensor); };
  expect_floats(a.table, 2, named("table").c_str(), "[rows, dim]");
  CHECK(a.before.shape().rank() == 2, what, ": before is ", a.before.shape(),
        ", expected [n, tokens]");
  const int64_t n = a.before.shape()[0];
  const int64_t tokens = a.before.shape()[1];
  const int64_t dim = a.table.shape()[1];
  const DType dtype = a.table.dtype();
  expect_tensor(a.before, DType::kI32, {n, tokens}, named("before").c_str(), "[n, tokens]");
  expect_tensor(a.weight, dtype, {n, dim}, named("weight").c_str(), "[n, dim]");
  expect_tensor(rows, dtype, {tokens, dim}, named(name).c_str(), "[tokens, dim]");
  CHECK(a.first >= 0 && (a.first == 0 || a.vocabulary > 0), what, ": first is ", a.first,
        " and vocabulary is ", a.vocabulary,
        ", expected the vocabulary that the table is a shard of");
}

}  // namespace

void token_smear_forward(Stream& stream, const TokenSmearForward& a) {
  expect_arguments(a, a.y, "token_smear_forward", "y");
  if (stream.on(DeviceKind::kCpu)) cpu::token_smear_forward(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::token_smear_forward(stream, a);
  }
}

void token_smear_backward(Stream& stream, const TokenSmearBackward& a) {
  expect_arguments(a, a.dy, "token_smear_backward", "dy");
  expect_tensor(a.dweight, DType::kF32, a.weight.shape(), "token_smear_backward: dweight",
                "[n, dim]");
  const int64_t tokens = a.before.shape()[1];
  for (int64_t j = 0; j < a.before.shape()[0]; ++j) {
    embedding_backward(stream, {.dtable = a.dtable,
                                .dy = a.dy,
                                .ids = a.before.rows(j, 1).reshape({tokens}),
                                .first = a.first,
                                .vocabulary = a.vocabulary,
                                .scale = a.weight.rows(j, 1).reshape({a.table.shape()[1]}),
                                .gaps = true});
  }
  if (stream.on(DeviceKind::kCpu)) cpu::token_smear_weights(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::token_smear_weights(stream, a);
  }
}

}  // namespace tessera
