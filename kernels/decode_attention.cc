#include "kernels/decode_attention.h"

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

namespace {

/// Positions [first, end) of the ring, none of which has been overwritten.
int64_t ring_spans(const WindowCache& cache, int64_t first, int64_t end, CacheSpan* to) {
  int64_t count = 0;
  while (first < end) {
    const int64_t row = cache.row(first);
    const int64_t rows = std::min(end - first, cache.rows() - row);
    to[count++] = {static_cast<int32_t>(row), static_cast<int32_t>(rows)};
    first += rows;
  }
  return count;
}

}  // namespace

int64_t WindowCache::spans(int64_t position, std::array<CacheSpan, 3>& to) const {
  CHECK(window >= 1 && sink_tokens >= 0 && spare >= 0, "window cache: window is ", window,
        ", sink_tokens is ", sink_tokens, ", spare is ", spare, ", expected 1, 0 and 0 at least");
  CHECK(position >= 0, "window cache: position is ", position, ", expected at least 0");
  const int64_t end = position + 1;
  int64_t count = 0;
  const int64_t sinks = std::min(sink_tokens, end);
  if (sinks > 0) to[static_cast<size_t>(count++)] = {0, static_cast<int32_t>(sinks)};
  const int64_t first = std::max(sink_tokens, end - window);
  return count + ring_spans(*this, first, end, to.data() + count);
}

void page_gate(Stream& stream, const PageGate& a) {
  expect_floats(a.k0, 3, "page_gate: k0", "[groups, sequences, d]");
  const int64_t groups = a.k0.shape()[0];
  const int64_t sequences = a.k0.shape()[1];
  const int64_t d = a.k0.shape()[2];
  expect_tensor(a.state, DType::kF32, {groups, sequences, d + 2}, "page_gate: state",
                "[groups, sequences, d + 2]");
  expect_tensor(a.kbar, a.k0.dtype(), a.k0.shape(), "page_gate: kbar", "[groups, sequences, d]");
  expect_tensor(a.r, DType::kF32, {groups, d}, "page_gate: r", "[groups, d]");
  expect_tensor(a.positions, DType::kI32, {sequences}, "page_gate: positions", "[sequences]");
  CHECK(a.part >= 1, "page_gate: part is ", a.part, ", expected at least 1");
  if (stream.on(DeviceKind::kCpu)) cpu::page_gate(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::page_gate(stream, a);
  }
}

void decode_select(Stream& stream, const DecodeSelect& a) {
  constexpr const char* kWho = "decode_select";
  CHECK(a.qt.shape().rank() == 3, kWho, ": qt is ", a.qt.shape(),
        ", expected [groups, sequences, gate_dim]");
  const int64_t groups = a.qt.shape()[0];
  const int64_t sequences = a.qt.shape()[1];
  const int64_t gate_dim = a.qt.shape()[2];
  CHECK(a.page_rows.shape().rank() == 2, kWho, ": page_rows is ", a.page_rows.shape(),
        ", expected [sequences, max_pages]");
  const int64_t pages = a.page_rows.shape()[1];
  CHECK(a.block >= 1 && a.gate_keys >= 1, kWho, ": block is ", a.block, " and gate_keys is ",
        a.gate_keys, ", expected at least 1");
  CHECK(a.rule.sink_blocks >= 0 && a.rule.window_blocks >= 1 && a.rule.kept >= 1, kWho,
        ": the rule has ", a.rule.sink_blocks, " sink blocks, ", a.rule.window_blocks,
        " window blocks and keeps ", a.rule.kept, ", expected at least 0, 1 and 1");
  const int64_t most = a.rule.sink_blocks + a.rule.kept + a.rule.window_blocks;
  check_selection(a.selection, groups, sequences, kWho);
  CHECK(a.selection.kept() == a.rule.kept, kWho, ": the rule keeps ", a.rule.kept,
        " blocks, the selection has ", a.selection.kept(), " slots");
  expect_tensor(a.spans, DType::kI32, {groups, sequences, most, 2}, "decode_select: spans",
                "[groups, sequences, sink_blocks + k + window_blocks, 2]");
  expect_tensor(a.log_gates, DType::kF32, {groups, sequences, most}, "decode_select: log_gates",
                "[groups, sequences, sink_blocks + k + window_blocks]");
  expect_tensor(a.counts, DType::kI32, {groups, sequences}, "decode_select: counts",
                "[groups, sequences]");
  expect_tensor(a.page_rows, DType::kI32, {sequences, pages}, "decode_select: page_rows",
                "[sequences, max_pages]");
  expect_tensor(a.positions, DType::kI32, {sequences}, "decode_select: positions", "[sequences]");
  expect_tensor(a.scores, DType::kF32, {groups, sequences, pages}, "decode_select: scores",
                "[groups, sequences, max_pages]");
  expect_tensor(a.qt, DType::kF32, {groups, sequences, gate_dim}, "decode_select: qt",
                "[groups, sequences, gate_dim]");
  expect_tensor(a.kt, DType::kF32, {groups, sequences, pages * a.gate_keys, gate_dim},
                "decode_select: kt", "[groups, sequences, max_pages * gate_keys, gate_dim]");
  expect_tensor(a.ramp.widths, DType::kF32, {groups}, "decode_select: widths", "[groups]");
  check_tree(a.tree, a.gate_keys, kWho);
  if (a.tree.enabled()) {
    expect_tensor(a.nodes, DType::kF32, {groups, sequences, tree_rows(pages), gate_dim},
                  "decode_select: nodes", "[groups, sequences, tree_rows(max_pages), gate_dim]");
  }
  CHECK(a.ramp.strength >= 0 && a.ramp.strength <= 1 - 0x1p-10f, kWho, ": strength is ",
        a.ramp.strength, ", expected 0 to 1 - 2^-10");
  if (stream.on(DeviceKind::kCpu)) cpu::decode_select(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::decode_select(stream, a);
  }
}

namespace {

void check_spans(const DecodeAttention& a, int64_t groups, int64_t sequences) {
  const Shape spans = a.spans.shape();
  CHECK(spans.rank() == 4 && (spans[0] == groups || spans[0] == 1), "decode_attention: spans is ",
        spans, ", expected [", groups, " groups or 1, sequences, most, 2]");
  expect_tensor(a.spans, DType::kI32, {spans[0], sequences, spans[2], 2}, "decode_attention: spans",
                "[groups or 1, sequences, most, 2]");
  expect_tensor(a.counts, DType::kI32, {spans[0], sequences}, "decode_attention: counts",
                "[groups or 1, sequences]");
  if (a.log_gates.empty()) return;
  expect_tensor(a.log_gates, DType::kF32, {spans[0], sequences, spans[2]},
                "decode_attention: log_gates", "[groups or 1, sequences, most]");
}

}  // namespace

void decode_attention(Stream& stream, const DecodeAttention& a) {
  expect_floats(a.q, 3, "decode_attention: q", "[sequences, heads, d]");
  expect_floats(a.k, 4, "decode_attention: k", "[groups, sequences, rows, d]");
  const int64_t sequences = a.q.shape()[0];
  const int64_t heads = a.q.shape()[1];
  const int64_t d = a.q.shape()[2];
  const auto groups = static_cast<int64_t>(a.groups.size());
  const Shape cache{groups, sequences, a.k.shape()[2], d};
  expect_tensor(a.k, a.q.dtype(), cache, "decode_attention: k", "[groups, sequences, rows, d]");
  expect_tensor(a.v, a.q.dtype(), cache, "decode_attention: v", "[groups, sequences, rows, d]");
  expect_tensor(a.o, a.q.dtype(), a.q.shape(), "decode_attention: o", "[sequences, heads, d]");
  CHECK(d >= 8 && d <= kMaxHeadDim && d % 8 == 0, "decode_attention: d is ", d,
        ", expected a multiple of 8 up to ", kMaxHeadDim);
  CHECK(a.kv_heads >= 1 && heads % a.kv_heads == 0, "decode_attention: ", heads, " heads and ",
        a.kv_heads, " kv_heads, expected a multiple");
  for (const int32_t group : a.groups) {
    CHECK(group >= 0 && group < a.kv_heads, "decode_attention: group is ", group,
          ", expected 0 to ", a.kv_heads - 1);
  }
  check_spans(a, groups, sequences);
  if (!a.lse.empty()) {
    expect_tensor(a.lse, DType::kF32, {sequences, heads}, "decode_attention: lse",
                  "[sequences, heads]");
  }
  if (!a.sink_logits.empty()) {
    expect_tensor(a.sink_logits, DType::kF32, {heads}, "decode_attention: sink_logits", "[heads]");
  }
  CHECK(a.scale > 0, "decode_attention: scale is ", a.scale, ", expected a positive number");
  if (stream.on(DeviceKind::kCpu)) cpu::decode_attention(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::decode_attention(stream, a);
  }
}

}  // namespace tessera
