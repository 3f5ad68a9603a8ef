#pragma once

#include <compare>
#include <memory>
#include <optional>

#include "kernels/attention.h"

namespace tessera {

/// What a library's plan of attention forward is made for. Equal calls share a plan.
struct AttentionPlanShape {
  int64_t tokens;
  /// 1: the whole tensor. Else a power of two, at least the segments of the grid: how many there
  /// are varies, and plans are few. The surplus is empty.
  int64_t segments;
  int64_t heads;         ///< computed by the plan, in whole groups
  int64_t kv_heads;      ///< of these groups
  int64_t row_heads;     ///< in a row of q and o
  int64_t row_kv_heads;  ///< in a row of k and v
  int64_t d;
  int64_t window;  ///< 0: all earlier tokens

  friend auto operator<=>(const AttentionPlanShape&, const AttentionPlanShape&) = default;
};
std::ostream& operator<<(std::ostream& out, const AttentionPlanShape& shape);

/// A call that a plan can serve: its heads are [first_head, first_head + shape.heads) of q.
struct PlannedAttention {
  AttentionPlanShape shape;
  int64_t first_head;
  int64_t first_kv_head;
};

/// How a plan serves `a`, from shapes and addresses alone; nullopt: not at all. Served is what
/// libraries agree on: bf16, head sizes up to 128, whole groups of neighbouring heads, segments
/// that lie end to end, causal with or without a window. Not served are sinks of either kind and
/// the grid of one of several ranks; nor calls so small, or of so many segments, that there is
/// nothing to gain.
std::optional<PlannedAttention> planned_attention(const AttentionForward& a);

/// Below this many tokens, and above this many segments, the kernel of ours is as good: a plan has
/// blocks for every segment being as long as the whole tensor.
inline constexpr int64_t kLeastPlannedTokens = 128;
inline constexpr int64_t kMostPlannedSegments = 64;

namespace gpu {

/// Operands of one run, on the device but for `scale`. Rows are as AttentionPlanShape says.
struct AttentionPlanTensors {
  void* o;        ///< of the first head
  float* lse;     ///< one segment: [heads, tokens]; several: [tokens, heads]
  const void* q;  ///< of the first head
  const void* k;  ///< of the first KV head
  const void* v;
  /// For several segments, else nullptr: [segments], how many tokens each has, and [segments + 1]
  /// where each begins, in elements of q and o, of k and v, and of lse.
  const int32_t* lengths;
  const int32_t* q_offsets;
  const int32_t* k_offsets;
  const int32_t* lse_offsets;
  float scale;
  void* workspace;  ///< workspace_bytes() of them
};

/// Attention forward for one shape on one device. Not for two threads at once.
class AttentionPlan {
 public:
  virtual ~AttentionPlan() = default;
  virtual int64_t workspace_bytes() const = 0;
  /// Enqueues it. Throws Error when that is refused; then nothing was enqueued.
  virtual void run(Stream& stream, const AttentionPlanTensors& tensors) = 0;
};

}  // namespace gpu

}  // namespace tessera
