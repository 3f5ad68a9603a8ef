#include "kernels/attention_plan.h"

#include <bit>
#include <limits>

#include "kernels/head_map.h"

namespace tessera {

namespace {

constexpr int64_t kMostPlannedDim = 128;
constexpr int64_t kMostOffset = std::numeric_limits<int32_t>::max();
constexpr int64_t kMostTokens = int64_t{1} << 24;  // positions are compared as floats

/// 16 bytes are what plans load at once.
bool aligned_for_plans(const ConstTensorView& x, int64_t first) {
  return (reinterpret_cast<uintptr_t>(x.data()) + static_cast<uintptr_t>(first)) % 16 == 0;
}

/// Segments end to end, and keys in the rows of their queries.
bool on_one_rank(const SegmentGrid& grid) {
  return grid.firsts.empty() && grid.piece_segments.empty() && grid.run_starts.empty() &&
         grid.keys() == grid.tokens();
}

bool whole_neighbours(std::span<const int32_t> groups, const HeadMap& map) {
  for (size_t i = 0; i < groups.size(); ++i) {
    if (groups[i] != groups[0] + static_cast<int32_t>(i)) return false;
    if (map.count_of(groups[i]) != map.group_heads) return false;
  }
  return !groups.empty();
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const AttentionPlanShape& shape) {
  out << shape.tokens << " tokens in " << shape.segments << " segments, heads " << shape.heads
      << "/" << shape.row_heads << ", kv_heads " << shape.kv_heads << "/" << shape.row_kv_heads
      << ", d " << shape.d;
  if (shape.window > 0) out << ", window " << shape.window;
  return out;
}

std::optional<PlannedAttention> planned_attention(const AttentionForward& a) {
  const int64_t tokens = a.q.shape()[0];
  const int64_t row_heads = a.q.shape()[1];
  const int64_t d = a.q.shape()[2];
  const HeadMap map = head_map(a);
  const bool whole = a.window >= tokens;
  const bool same_kind = a.q.dtype() == DType::kBF16 && d <= kMostPlannedDim && d % 8 == 0;
  const bool no_sinks = a.sink_logits.empty() && (a.sink_tokens == 0 || whole);
  const bool worth_it = tokens >= kLeastPlannedTokens && a.grid.pieces() >= 1 &&
                        a.grid.pieces() <= kMostPlannedSegments;
  if (!same_kind || !no_sinks || !worth_it) return {};
  if (tokens > kMostTokens || tokens * row_heads * d > kMostOffset) return {};
  if (!on_one_rank(a.grid) || !whole_neighbours(a.groups, map)) return {};
  for (const ConstTensorView& x : {ConstTensorView(a.o), a.q, a.k, a.v}) {
    if (!aligned_for_plans(x, 0)) return {};
  }
  const int64_t first_head = map.begin_of(a.groups[0]);
  const auto lse_bytes = static_cast<int64_t>(sizeof(float)) * first_head * tokens;
  if (a.grid.pieces() == 1 && !aligned_for_plans(a.lse, lse_bytes)) return {};
  const auto kv_heads = static_cast<int64_t>(a.groups.size());
  const auto segments = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(a.grid.pieces())));
  return PlannedAttention{.shape = {.tokens = tokens,
                                    .segments = segments,
                                    .heads = kv_heads * map.group_heads,
                                    .kv_heads = kv_heads,
                                    .row_heads = row_heads,
                                    .row_kv_heads = a.k.shape()[1],
                                    .d = d,
                                    .window = whole ? 0 : a.window},
                          .first_head = first_head,
                          .first_kv_head = a.groups[0]};
}

}  // namespace tessera
