#include "kernels/embedding.h"

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

namespace {

void expect_shard(int64_t first, int64_t vocabulary, const char* what) {
  CHECK(first >= 0 && vocabulary >= 0, what, ": first is ", first, " and vocabulary is ",
        vocabulary, ", expected at least 0");
  CHECK(first == 0 || vocabulary > 0, what, ": first is ", first,
        " and vocabulary is not set, expected the vocabulary that the table is a shard of");
}

}  // namespace

void embedding_forward(Stream& stream, const EmbeddingForward& a) {
  expect_floats(a.table, 2, "embedding_forward: table", "[rows, dim]");
  CHECK(a.ids.shape().rank() == 1, "embedding_forward: ids is ", a.ids.shape(),
        ", expected [tokens]");
  const int64_t tokens = a.ids.shape()[0];
  expect_tensor(a.ids, DType::kI32, {tokens}, "embedding_forward: ids", "[tokens]");
  expect_tensor(a.y, a.table.dtype(), {tokens, a.table.shape()[1]}, "embedding_forward: y",
                "[tokens, dim]");
  expect_shard(a.first, a.vocabulary, "embedding_forward");
  if (stream.on(DeviceKind::kCpu)) cpu::embedding_forward(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::embedding_forward(stream, a);
  }
}

void embedding_backward(Stream& stream, const EmbeddingBackward& a) {
  expect_floats(a.dy, 2, "embedding_backward: dy", "[tokens, dim]");
  expect_tensor(a.ids, DType::kI32, {a.dy.shape()[0]}, "embedding_backward: ids", "[tokens]");
  CHECK(a.dtable.shape().rank() == 2, "embedding_backward: dtable is ", a.dtable.shape(),
        ", expected [rows, dim]");
  expect_tensor(a.dtable, DType::kF32, {a.dtable.shape()[0], a.dy.shape()[1]},
                "embedding_backward: dtable", "[rows, dim]");
  if (!a.scale.empty()) {
    expect_tensor(a.scale, a.dy.dtype(), {a.dy.shape()[1]}, "embedding_backward: scale", "[dim]");
  }
  expect_shard(a.first, a.vocabulary, "embedding_backward");
  if (stream.on(DeviceKind::kCpu)) cpu::embedding_backward(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::embedding_backward(stream, a);
  }
}

}  // namespace tessera
