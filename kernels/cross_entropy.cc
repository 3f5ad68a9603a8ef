#include "kernels/cross_entropy.h"

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

void softmax_stats(Stream& stream, const SoftmaxStats& a) {
  expect_floats(a.logits, 2, "softmax_stats: logits", "[tokens, columns]");
  const int64_t tokens = a.logits.shape()[0];
  expect_tensor(a.stats, DType::kF32, {tokens, kSoftmaxStats}, "softmax_stats: stats",
                "[tokens, 3]");
  expect_tensor(a.targets, DType::kI32, {tokens}, "softmax_stats: targets", "[tokens]");
  CHECK(a.vocabulary >= 1, "softmax_stats: vocabulary is ", a.vocabulary, ", expected at least 1");
  CHECK(a.first >= 0, "softmax_stats: first is ", a.first, ", expected at least 0");
  if (stream.on(DeviceKind::kCpu)) cpu::softmax_stats(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::softmax_stats(stream, a);
  }
}

void merge_softmax_stats(Stream& stream, const MergeSoftmaxStats& a) {
  CHECK(a.stats.shape().rank() == 3 && a.stats.shape()[0] >= 1, "merge_softmax_stats: stats is ",
        a.stats.shape(), ", expected [shards, tokens, 3] of at least 1 shard");
  const Shape& shape = a.stats.shape();
  expect_tensor(a.stats, DType::kF32, shape.with(2, kSoftmaxStats), "merge_softmax_stats: stats",
                "[shards, tokens, 3]");
  expect_tensor(a.merged, DType::kF32, {shape[1], kSoftmaxStats}, "merge_softmax_stats: merged",
                "[tokens, 3]");
  expect_tensor(a.losses, DType::kF32, {shape[1]}, "merge_softmax_stats: losses", "[tokens]");
  expect_tensor(a.targets, DType::kI32, {shape[1]}, "merge_softmax_stats: targets", "[tokens]");
  if (!a.hits.empty()) {
    expect_tensor(a.hits, DType::kF32, {shape[1]}, "merge_softmax_stats: hits", "[tokens]");
  }
  if (stream.on(DeviceKind::kCpu)) cpu::merge_softmax_stats(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::merge_softmax_stats(stream, a);
  }
}

void cross_entropy_gradient(Stream& stream, const CrossEntropyGradient& a) {
  expect_floats(a.logits, 2, "cross_entropy_gradient: logits", "[tokens, columns]");
  expect_floats(a.dlogits, 2, "cross_entropy_gradient: dlogits", "[tokens, columns]");
  const Shape& shape = a.logits.shape();
  CHECK(a.dlogits.shape() == shape, "cross_entropy_gradient: dlogits is ", a.dlogits.shape(),
        ", expected [tokens, columns] = ", shape);
  CHECK(a.dlogits.data() == nullptr || a.dlogits.data() != a.logits.data() ||
            a.dlogits.dtype() == a.logits.dtype(),
        "cross_entropy_gradient: dlogits is ", name_of(a.dlogits.dtype()),
        " and aliases logits in ", name_of(a.logits.dtype()));
  expect_tensor(a.merged, DType::kF32, {shape[0], kSoftmaxStats}, "cross_entropy_gradient: merged",
                "[tokens, 3]");
  expect_tensor(a.targets, DType::kI32, {shape[0]}, "cross_entropy_gradient: targets", "[tokens]");
  CHECK(a.vocabulary >= 1, "cross_entropy_gradient: vocabulary is ", a.vocabulary,
        ", expected at least 1");
  CHECK(a.first >= 0, "cross_entropy_gradient: first is ", a.first, ", expected at least 0");
  if (!a.scale_from.empty()) {
    expect_tensor(a.scale_from, DType::kF32, {1}, "cross_entropy_gradient: scale_from", "[1]");
  }
  if (stream.on(DeviceKind::kCpu)) cpu::cross_entropy_gradient(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::cross_entropy_gradient(stream, a);
  }
}

}  // namespace tessera
