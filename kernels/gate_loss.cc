#include "kernels/gate_loss.h"

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

void gate_loss(Stream& stream, const GateLoss& a) {
  CHECK(a.selection.counts.shape().rank() == 2, "gate_loss: selection.counts is ",
        a.selection.counts.shape(), ", expected [groups, tokens]");
  const int64_t groups = a.selection.counts.shape()[0];
  const int64_t tokens = a.selection.counts.shape()[1];
  check_selection(a.selection, groups, tokens, "gate_loss");
  expect_tensor(a.losses, DType::kF32, {3}, "gate_loss: losses", "[kl, entropy, z]");
  expect_tensor(a.dscores, DType::kF32, a.selection.scores.shape(), "gate_loss: dscores",
                "[groups, tokens, k + 1]");
  CHECK(a.block_lse.shape().rank() == 4 && a.block_lse.shape()[2] >= 1, "gate_loss: block_lse is ",
        a.block_lse.shape(), ", expected [groups, tokens, g, k]");
  expect_tensor(a.block_lse, DType::kF32,
                {groups, tokens, a.block_lse.shape()[2], a.selection.kept()},
                "gate_loss: block_lse", "[groups, tokens, g, k]");
  if (!a.coefficients.empty()) {
    expect_tensor(a.coefficients, DType::kF32, {3}, "gate_loss: coefficients", "[kl, entropy, z]");
  }
  if (stream.on(DeviceKind::kCpu)) cpu::gate_loss(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::gate_loss(stream, a);
  }
}

}  // namespace tessera
