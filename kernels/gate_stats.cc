#include "kernels/gate_stats.h"

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

void gate_stats(Stream& stream, const GateStats& a) {
  const Shape slots = a.selection.scores.shape();
  CHECK(a.stats.shape() == Shape{GateStats::kSize}, "gate_stats: stats is ", a.stats.shape(),
        ", expected ", Shape{GateStats::kSize});
  CHECK(slots.rank() == 3 && slots[1] == a.grid.tokens(), "gate_stats: scores is ", slots,
        ", expected [groups, ", a.grid.tokens(), " tokens, k + 1]");
  CHECK(a.ramp.widths.shape() == Shape{slots[0]}, "gate_stats: widths is ", a.ramp.widths.shape(),
        ", expected [groups] = ", Shape{slots[0]});
  check_tree(a.tree, 1, "gate_stats");
  if (a.tree.enabled()) {
    CHECK(a.qt.shape().rank() == 3, "gate_stats: qt is ", a.qt.shape(),
          ", expected [groups, tokens, gate_dim]");
    const int64_t gate_dim = a.qt.shape()[2];
    expect_tensor(a.qt, DType::kF32, {slots[0], slots[1], gate_dim}, "gate_stats: qt",
                  "[groups, tokens, gate_dim]");
    expect_tensor(a.kt, DType::kF32, {slots[0], a.grid.max_blocks(), gate_dim}, "gate_stats: kt",
                  "[groups, max_blocks, gate_dim]");
  }
  if (stream.on(DeviceKind::kCpu)) cpu::gate_stats(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::gate_stats(stream, a);
  }
}

}  // namespace tessera
