#include "kernels/segment_grid.h"

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

SegmentGrid build_segment_grid(Stream& stream, const BuildSegmentGrid& a) {
  CHECK(a.starts.shape().rank() == 1 && a.starts.shape()[0] >= 2, "build_segment_grid: starts is ",
        a.starts.shape(), ", expected [segments + 1] with at least one segment");
  CHECK(a.positions.shape().rank() == 1, "build_segment_grid: positions is ", a.positions.shape(),
        ", expected [tokens]");
  const Shape& bounds = a.starts.shape();
  expect_tensor(a.starts, DType::kI32, bounds, "build_segment_grid: starts", "[segments + 1]");
  expect_tensor(a.positions, DType::kI32, a.positions.shape(), "build_segment_grid: positions",
                "[tokens]");
  expect_tensor(a.tile_starts, DType::kI32, bounds, "build_segment_grid: tile_starts",
                "[segments + 1]");
  expect_tensor(a.block_starts, DType::kI32, bounds, "build_segment_grid: block_starts",
                "[segments + 1]");
  CHECK(a.block >= SegmentGrid::kTile && a.block % SegmentGrid::kTile == 0,
        "build_segment_grid: block is ", a.block, " tokens, expected a multiple of ",
        SegmentGrid::kTile);
  if (stream.on(DeviceKind::kCpu)) cpu::build_segment_grid(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::build_segment_grid(stream, a);
  }
  return {.starts = a.starts,
          .positions = a.positions,
          .tile_starts = a.tile_starts,
          .block_starts = a.block_starts,
          .block = a.block};
}

SegmentGrid build_sharded_grid(Stream& stream, const BuildShardedGrid& a) {
  constexpr const char* kWho = "build_sharded_grid";
  const auto check = [&](const ConstTensorView& x, int64_t size, const char* name,
                         const char* axes) {
    expect_tensor(x, DType::kI32, {size}, concat(kWho, ": ", name).c_str(), axes);
  };
  const auto check_starts = [&](const ConstTensorView& x, const char* name, const char* axes) {
    CHECK(x.shape().rank() == 1 && x.shape()[0] >= 2, kWho, ": ", name, " is ", x.shape(),
          ", expected ", axes, " with at least one");
    check(x, x.shape()[0], name, axes);
  };
  check_starts(a.starts, "starts", "[pieces + 1]");
  check_starts(a.run_starts, "run_starts", "[runs + 1]");
  check_starts(a.block_starts, "block_starts", "[segments + 1]");
  const int64_t pieces = a.starts.shape()[0] - 1;
  const int64_t runs = a.run_starts.shape()[0] - 1;
  check(a.firsts, pieces, "firsts", "[pieces]");
  check(a.piece_segments, pieces, "piece_segments", "[pieces]");
  check(a.run_firsts, runs, "run_firsts", "[runs]");
  check(a.run_segments, runs, "run_segments", "[runs]");
  check(a.positions, a.positions.shape()[0], "positions", "[tokens]");
  check(a.tile_starts, pieces + 1, "tile_starts", "[pieces + 1]");
  CHECK(a.block >= SegmentGrid::kTile && a.block % SegmentGrid::kTile == 0, kWho, ": block is ",
        a.block, " tokens, expected a multiple of ", SegmentGrid::kTile);
  CHECK(a.key_rows >= 0, kWho, ": key_rows is ", a.key_rows, ", expected at least 0");
  if (stream.on(DeviceKind::kCpu)) cpu::build_sharded_grid(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::build_sharded_grid(stream, a);
  }
  return {.starts = a.starts,
          .positions = a.positions,
          .tile_starts = a.tile_starts,
          .block_starts = a.block_starts,
          .block = a.block,
          .firsts = a.firsts,
          .piece_segments = a.piece_segments,
          .run_starts = a.run_starts,
          .run_firsts = a.run_firsts,
          .run_segments = a.run_segments,
          .key_rows = a.key_rows};
}

}  // namespace tessera
