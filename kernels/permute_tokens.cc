#include "kernels/permute_tokens.h"

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

void sort_by_expert(Stream& stream, const SortByExpert& a) {
  CHECK(a.experts.shape().rank() == 2, "sort_by_expert: experts is ", a.experts.shape(),
        ", expected [tokens, k]");
  const Shape pairs = a.experts.shape();
  expect_tensor(a.experts, DType::kI32, pairs, "sort_by_expert: experts", "[tokens, k]");
  expect_tensor(a.row_of, DType::kI32, pairs, "sort_by_expert: row_of", "[tokens, k]");
  expect_tensor(a.source_of, DType::kI32, {pairs.elements()}, "sort_by_expert: source_of",
                "[tokens * k]");
  CHECK(a.offsets.dtype() == DType::kI32 && a.offsets.shape().rank() == 1 &&
            a.offsets.shape()[0] >= 1,
        "sort_by_expert: offsets is ", name_of(a.offsets.dtype()), " ", a.offsets.shape(),
        ", expected i32 [experts + 1]");
  CHECK(a.capacity >= 0, "sort_by_expert: capacity is ", a.capacity, ", expected at least 0");
  if (!a.dropped.empty()) {
    expect_tensor(a.dropped, DType::kF32, {1}, "sort_by_expert: dropped", "[1]");
  }
  if (stream.on(DeviceKind::kCpu)) cpu::sort_by_expert(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::sort_by_expert(stream, a);
  }
}

void gather_rows(Stream& stream, const GatherRows& a) {
  expect_rows(a.x, "gather_rows: x", "[tokens, dim]");
  CHECK(a.source_of.shape().rank() == 1, "gather_rows: source_of is ", a.source_of.shape(),
        ", expected [rows]");
  const int64_t rows = a.source_of.shape()[0];
  expect_tensor(a.source_of, DType::kI32, {rows}, "gather_rows: source_of", "[rows]");
  expect_tensor(a.y, a.x.dtype(), {rows, a.x.shape()[1]}, "gather_rows: y", "[rows, dim]");
  CHECK(a.slots >= 1, "gather_rows: slots is ", a.slots, ", expected at least 1");
  if (!a.row_of.empty()) {
    expect_tensor(a.row_of, DType::kI32, {a.x.shape()[0], a.slots}, "gather_rows: row_of",
                  "[tokens, k]");
  }
  if (stream.on(DeviceKind::kCpu)) cpu::gather_rows(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::gather_rows(stream, a);
  }
}

void merge_expert_rows(Stream& stream, const MergeExpertRows& a) {
  CHECK(a.counts.shape().rank() == 2, "merge_expert_rows: counts is ", a.counts.shape(),
        ", expected [sources, local experts]");
  const Shape& shape = a.counts.shape();
  expect_tensor(a.counts, DType::kI32, shape, "merge_expert_rows: counts",
                "[sources, local experts]");
  expect_tensor(a.offsets, DType::kI32, {shape[1] + 1}, "merge_expert_rows: offsets",
                "[local experts + 1]");
  CHECK(a.order.dtype() == DType::kI32 && a.order.shape().rank() == 1,
        "merge_expert_rows: order is ", name_of(a.order.dtype()), " ", a.order.shape(),
        ", expected i32 [capacity]");
  if (stream.on(DeviceKind::kCpu)) cpu::merge_expert_rows(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::merge_expert_rows(stream, a);
  }
}

void scatter_rows(Stream& stream, const ScatterRows& a) {
  expect_rows(a.x, "scatter_rows: x", "[rows, dim]");
  expect_rows(a.y, "scatter_rows: y", "[any number, dim]");
  const Shape& shape = a.x.shape();
  expect_tensor(a.order, DType::kI32, {shape[0]}, "scatter_rows: order", "[rows]");
  expect_tensor(a.y, a.x.dtype(), {a.y.shape()[0], shape[1]}, "scatter_rows: y",
                "[any number, dim]");
  if (stream.on(DeviceKind::kCpu)) cpu::scatter_rows(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::scatter_rows(stream, a);
  }
}

void gather_sum(Stream& stream, const GatherSum& a) {
  expect_rows(a.x, "gather_sum: x", "[rows, dim]");
  CHECK(a.row_of.shape().rank() == 2, "gather_sum: row_of is ", a.row_of.shape(),
        ", expected [tokens, k]");
  const int64_t tokens = a.row_of.shape()[0];
  expect_tensor(a.row_of, DType::kI32, a.row_of.shape(), "gather_sum: row_of", "[tokens, k]");
  expect_tensor(a.y, a.x.dtype(), {tokens, a.x.shape()[1]}, "gather_sum: y", "[tokens, dim]");
  if (!a.base.empty()) {
    expect_tensor(a.base, a.x.dtype(), a.y.shape(), "gather_sum: base", "[tokens, dim]");
  }
  if (stream.on(DeviceKind::kCpu)) cpu::gather_sum(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::gather_sum(stream, a);
  }
}

void permute_pairs(Stream& stream, const PermutePairs& a) {
  CHECK(a.source_of.shape().rank() == 1, "permute_pairs: source_of is ", a.source_of.shape(),
        ", expected [rows]");
  const int64_t rows = a.source_of.shape()[0];
  expect_tensor(a.source_of, DType::kI32, {rows}, "permute_pairs: source_of", "[rows]");
  const auto expect_elements = [&](const ConstTensorView& x, const char* what, bool of_rows) {
    const bool fits = of_rows ? x.elements() == rows : x.elements() >= rows;
    CHECK(x.dtype() == DType::kF32 && fits, "permute_pairs: ", what, " is ", name_of(x.dtype()),
          " ", x.shape(), ", expected f32 of ", of_rows ? "" : "at least ", rows, " elements");
  };
  expect_elements(a.x, "x", a.inverse);
  expect_elements(a.y, "y", !a.inverse);
  if (stream.on(DeviceKind::kCpu)) cpu::permute_pairs(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::permute_pairs(stream, a);
  }
}

}  // namespace tessera
