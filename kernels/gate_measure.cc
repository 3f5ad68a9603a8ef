#include "kernels/gate_measure.h"

#include "kernels/attention.h"
#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

namespace {

void check_figures(const char* who, const ConstTensorView& figures, int64_t groups) {
  expect_tensor(figures, DType::kF32, {groups, GateFigures::kSize},
                concat(who, ": figures").c_str(), "[groups, GateFigures::kSize]");
}

void check_rule(const char* who, const BlockRule& rule) {
  CHECK(rule.sink_blocks >= 0 && rule.window_blocks >= 1, who, ": the rule has ", rule.sink_blocks,
        " sink blocks and ", rule.window_blocks, " window blocks, expected at least 0 and 1");
}

}  // namespace

void measure_gate_rows(Stream& stream, const MeasureGateRows& a) {
  constexpr const char* kWho = "measure_gate_rows";
  check_attention(kWho, {a.q, a.k, a.k, a.sink_logits, a.grid, a.groups, a.scale, 0, 0});
  const auto groups = static_cast<int64_t>(a.groups.size());
  const int64_t tokens = a.q.shape()[0];
  const int64_t heads = a.q.shape()[1];
  check_figures(kWho, a.figures, groups);
  check_rule(kWho, a.rule);
  if (!a.map.empty()) {
    expect_tensor(a.map, DType::kF32, {groups, kMapBins, kMapBins + 1}, "measure_gate_rows: map",
                  "[groups, 64, 65]");
  }
  CHECK(a.samples.shape().rank() == 2, kWho, ": samples is ", a.samples.shape(),
        ", expected [samples, 2]");
  expect_tensor(a.samples, DType::kI32, {a.samples.shape()[0], 2}, "measure_gate_rows: samples",
                "[samples, 2]");
  CHECK(a.sequence_length >= 1, kWho, ": sequence_length is ", a.sequence_length,
        ", expected at least 1");
  expect_tensor(a.lse, DType::kF32, {heads, tokens}, "measure_gate_rows: lse", "[heads, tokens]");
  if (!a.selection.blocks.empty()) {
    check_selection(a.selection, groups, tokens, kWho);
    expect_tensor(a.block_lse, DType::kF32,
                  {groups, tokens, heads / a.k.shape()[1], a.selection.kept()},
                  "measure_gate_rows: block_lse", "[groups, tokens, g, k]");
    expect_tensor(a.ramp.widths, DType::kF32, {groups}, "measure_gate_rows: widths", "[groups]");
  }
  if (a.samples.shape()[0] == 0) return;
  if (stream.on(DeviceKind::kCpu)) cpu::measure_gate_rows(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::measure_gate_rows(stream, a);
  }
}

void measure_gate_lists(Stream& stream, const MeasureGateLists& a) {
  constexpr const char* kWho = "measure_gate_lists";
  const Shape offsets = a.lists.tile_offsets.shape();
  CHECK(offsets.rank() == 2 && offsets[1] == a.grid.max_tiles() + 1, kWho, ": tile_offsets is ",
        offsets, ", expected [groups, max_tiles + 1] with ", a.grid.max_tiles(), " tiles");
  check_figures(kWho, a.figures, offsets[0]);
  check_rule(kWho, a.rule);
  expect_tensor(a.lists.block_offsets, DType::kI32, {offsets[0], a.grid.max_blocks() + 1},
                "measure_gate_lists: block_offsets", "[groups, max_blocks + 1]");
  expect_tensor(a.counts, DType::kF32, {offsets[0], a.grid.max_blocks(), 2},
                "measure_gate_lists: counts", "[groups, max_blocks, 2]");
  if (stream.on(DeviceKind::kCpu)) cpu::measure_gate_lists(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::measure_gate_lists(stream, a);
  }
}

void measure_gate_blocks(Stream& stream, const MeasureGateBlocks& a) {
  const Shape counts = a.counts.shape();
  CHECK(counts.rank() == 3, "measure_gate_blocks: counts is ", counts,
        ", expected [groups, max_blocks, 2]");
  expect_tensor(a.counts, DType::kF32, {counts[0], counts[1], 2}, "measure_gate_blocks: counts",
                "[groups, max_blocks, 2]");
  check_figures("measure_gate_blocks", a.figures, counts[0]);
  if (stream.on(DeviceKind::kCpu)) cpu::measure_gate_blocks(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::measure_gate_blocks(stream, a);
  }
}

}  // namespace tessera
