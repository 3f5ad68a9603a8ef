#include "kernels/gate_stats.h"

namespace tessera {

void gate_stats(Stream& stream, const GateStats& a) {
  const Shape slots = a.selection.scores.shape();
  CHECK(a.stats.shape() == Shape{4}, "gate_stats: stats is ", a.stats.shape(), ", expected [4]");
  CHECK(slots.rank() == 3 && slots[1] == a.grid.tokens(), "gate_stats: scores is ", slots,
        ", expected [groups, ", a.grid.tokens(), " tokens, k + 1]");
  CHECK(a.ramp.widths.shape() == Shape{slots[0]}, "gate_stats: widths is ", a.ramp.widths.shape(),
        ", expected [groups] = ", Shape{slots[0]});
  if (stream.on(DeviceKind::kCpu)) cpu::gate_stats(stream.threads(), a);
}

}  // namespace tessera
