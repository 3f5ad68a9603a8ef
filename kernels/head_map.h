#pragma once

#include <cstdint>

namespace tessera {

/// Which heads of q a KV head has: head h of q belongs to KV head (h + first_head) / group_heads.
struct HeadMap {
  int64_t heads = 0;        ///< of q
  int64_t group_heads = 1;  ///< of a whole group
  int64_t first_head = 0;   ///< heads of KV head 0 that come before head 0 of q

  /// Heads [begin, begin_of(kv_head + 1)) of q; none where all of them are elsewhere.
  constexpr int64_t begin_of(int64_t kv_head) const {
    const int64_t begin = kv_head * group_heads - first_head;
    return begin < 0 ? 0 : (begin > heads ? heads : begin);
  }
  constexpr int64_t count_of(int64_t kv_head) const {
    return begin_of(kv_head + 1) - begin_of(kv_head);
  }
  /// Of a head of q, counted from the first head of its whole group.
  constexpr int64_t in_group(int64_t head) const { return (head + first_head) % group_heads; }
};
/// Of the arguments of a kernel.
template <class A>
HeadMap head_map(const A& a) {
  const int64_t heads = a.q.shape()[1];
  return {heads, a.group_heads > 0 ? a.group_heads : heads / a.k.shape()[1], a.first_head};
}

}  // namespace tessera
