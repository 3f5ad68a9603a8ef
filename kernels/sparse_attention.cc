#include "kernels/sparse_attention.h"

#include "kernels/attention.h"
#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

namespace {

struct SparseInputs {
  const SegmentGrid& grid;
  int64_t groups;
  int64_t tokens;
  const BlockRule& rule;
  const BlockSelection& selection;
  const BlockLists& lists;
  const GateRamp& ramp;
};

void check_lists(const char* who, const SparseInputs& a) {
  const auto name = [&](const char* tensor) { return concat(who, ": ", tensor); };
  const BlockLists& lists = a.lists;
  expect_tensor(lists.tile_offsets, DType::kI32, {a.groups, a.grid.max_tiles() + 1},
                name("tile_offsets").c_str(), "[groups, max_tiles + 1]");
  expect_tensor(lists.block_offsets, DType::kI32, {a.groups, a.grid.max_blocks() + 1},
                name("block_offsets").c_str(), "[groups, max_blocks + 1]");
  const Shape entries = lists.tile_blocks.shape();
  CHECK(entries.rank() == 2 && entries[0] == a.groups, who, ": tile_blocks is ", entries,
        ", expected [groups, capacity] with ", a.groups, " groups");
  const char* axes = "[groups, capacity]";
  expect_tensor(lists.tile_blocks, DType::kI32, entries, name("tile_blocks").c_str(), axes);
  expect_tensor(lists.tile_masks, DType::kU16, entries, name("tile_masks").c_str(), axes);
  expect_tensor(lists.block_tiles, DType::kI32, entries, name("block_tiles").c_str(), axes);
  expect_tensor(lists.block_masks, DType::kU16, entries, name("block_masks").c_str(), axes);
}

void check_sparse(const char* who, const SparseInputs& a) {
  check_selection(a.selection, a.groups, a.tokens, who);
  CHECK(a.rule.kept == a.selection.kept(), who, ": the rule keeps ", a.rule.kept,
        " blocks, the selection has ", a.selection.kept(), " slots");
  CHECK(a.rule.sink_blocks >= 0 && a.rule.window_blocks >= 1, who, ": the rule has ",
        a.rule.sink_blocks, " sink blocks and ", a.rule.window_blocks,
        " window blocks, expected at least 0 and 1");
  CHECK(a.grid.block >= 16 && a.grid.block % 16 == 0, who, ": block is ", a.grid.block,
        ", expected a multiple of 16");
  check_lists(who, a);
  CHECK(a.ramp.strength >= 0 && a.ramp.strength <= 1 - 0x1p-10f, who, ": strength is ",
        a.ramp.strength, ", expected 0 to 1 - 2^-10");
  expect_tensor(a.ramp.widths, DType::kF32, {a.groups}, concat(who, ": widths").c_str(),
                "[groups]");
}

}  // namespace

void sparse_attention_forward(Stream& stream, const SparseAttentionForward& a) {
  constexpr const char* kWho = "sparse_attention_forward";
  check_attention(
      kWho, {a.q, a.k, a.v, a.sink_logits, a.grid, a.groups, a.scale, a.group_heads, a.first_head});
  const int64_t tokens = a.q.shape()[0];
  const int64_t heads = a.q.shape()[1];
  const auto groups = static_cast<int64_t>(a.groups.size());
  check_sparse(kWho, {a.grid, groups, tokens, a.rule, a.selection, a.lists, a.ramp});
  expect_tensor(a.o, a.q.dtype(), a.q.shape(), "sparse_attention_forward: o", "[tokens, heads, d]");
  expect_tensor(a.lse, DType::kF32, {heads, tokens}, "sparse_attention_forward: lse",
                "[heads, tokens]");
  if (!a.block_lse.empty()) {
    expect_tensor(a.block_lse, DType::kF32,
                  {groups, tokens, a.group_heads > 0 ? a.group_heads : heads / a.k.shape()[1],
                   a.selection.kept()},
                  "sparse_attention_forward: block_lse", "[groups, tokens, g, k]");
  }
  if (stream.on(DeviceKind::kCpu)) cpu::sparse_attention_forward(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::sparse_attention_forward(stream, a);
  }
}

void sparse_attention_backward(Stream& stream, const SparseAttentionBackward& a) {
  constexpr const char* kWho = "sparse_attention_backward";
  check_attention(
      kWho, {a.q, a.k, a.v, a.sink_logits, a.grid, a.groups, a.scale, a.group_heads, a.first_head});
  const int64_t tokens = a.q.shape()[0];
  const auto groups = static_cast<int64_t>(a.groups.size());
  check_sparse(kWho, {a.grid, groups, tokens, a.rule, a.selection, a.lists, a.ramp});
  check_attention_gradient(kWho, {.dq = a.dq,
                                  .dk = a.dk,
                                  .dv = a.dv,
                                  .delta = a.delta,
                                  .d_o = a.d_o,
                                  .o = a.o,
                                  .lse = a.lse,
                                  .q = a.q,
                                  .k = a.k,
                                  .sink_logits = a.sink_logits,
                                  .dsink_logits = a.dsink_logits});
  expect_tensor(a.dlog_gate, DType::kF32, {groups, tokens, a.selection.kept()},
                "sparse_attention_backward: dlog_gate", "[groups, tokens, k]");
  if (stream.on(DeviceKind::kCpu)) cpu::sparse_attention_backward(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::sparse_attention_backward(stream, a);
  }
}

}  // namespace tessera
