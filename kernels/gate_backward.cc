#include "kernels/gate_backward.h"

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

void ramp_backward(Stream& stream, const RampBackward& a) {
  CHECK(a.selection.counts.shape().rank() == 2, "ramp_backward: selection.counts is ",
        a.selection.counts.shape(), ", expected [groups, tokens]");
  const int64_t groups = a.selection.counts.shape()[0];
  const int64_t tokens = a.selection.counts.shape()[1];
  check_selection(a.selection, groups, tokens, "ramp_backward");
  expect_tensor(a.dscores, DType::kF32, a.selection.scores.shape(), "ramp_backward: dscores",
                "[groups, tokens, k + 1]");
  expect_tensor(a.dlog_gate, DType::kF32, {groups, tokens, a.selection.kept()},
                "ramp_backward: dlog_gate", "[groups, tokens, k]");
  expect_tensor(a.dwidths, DType::kF32, {groups}, "ramp_backward: dwidths", "[groups]");
  expect_tensor(a.ramp.widths, DType::kF32, {groups}, "ramp_backward: ramp.widths", "[groups]");
  CHECK(a.ramp.strength >= 0 && a.ramp.strength <= 1 - 0x1p-10f, "ramp_backward: strength is ",
        a.ramp.strength, ", expected 0 to 1 - 2^-10");
  if (stream.on(DeviceKind::kCpu)) cpu::ramp_backward(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::ramp_backward(stream, a);
  }
}

void score_backward(Stream& stream, const ScoreBackward& a) {
  CHECK(a.qt.shape().rank() == 3, "score_backward: qt is ", a.qt.shape(),
        ", expected [groups, tokens, gate_dim]");
  CHECK(a.gate_keys >= 1, "score_backward: gate_keys is ", a.gate_keys, ", expected >= 1");
  const int64_t groups = a.qt.shape()[0];
  const Shape queries{groups, a.grid.tokens(), a.qt.shape()[2]};
  const Shape keys{groups, a.grid.max_blocks() * a.gate_keys, a.qt.shape()[2]};
  check_selection(a.selection, groups, a.grid.tokens(), "score_backward");
  expect_tensor(a.qt, DType::kF32, queries, "score_backward: qt", "[groups, tokens, gate_dim]");
  expect_tensor(a.dqt, DType::kF32, queries, "score_backward: dqt", "[groups, tokens, gate_dim]");
  expect_tensor(a.kt, DType::kF32, keys, "score_backward: kt",
                "[groups, max_blocks * gate_keys, gate_dim]");
  expect_tensor(a.dkt, DType::kF32, keys, "score_backward: dkt",
                "[groups, max_blocks * gate_keys, gate_dim]");
  expect_tensor(a.dscores, DType::kF32, a.selection.scores.shape(), "score_backward: dscores",
                "[groups, tokens, k + 1]");
  if (stream.on(DeviceKind::kCpu)) cpu::score_backward(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::score_backward(stream, a);
  }
}

}  // namespace tessera
