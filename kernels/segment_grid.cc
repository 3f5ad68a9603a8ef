#include "kernels/segment_grid.h"

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
  return {.starts = a.starts,
          .positions = a.positions,
          .tile_starts = a.tile_starts,
          .block_starts = a.block_starts,
          .block = a.block};
}

}  // namespace tessera
