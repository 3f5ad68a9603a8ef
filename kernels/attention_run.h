#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>

#include "kernels/attention_tile.h"
#include "kernels/head_map.h"
#include "kernels/segment_grid.h"

namespace tessera::cpu {

/// Memory of one task, on its stack: taken piece by piece, gone with the task.
class Scratch {
 public:
  Scratch() {}  // leaves the memory as it is: clearing a megabyte per task would be felt

  /// `count` numbers from an address that is a multiple of 64. They are not initialised.
  template <class T>
  T* take(int64_t count) {
    const int64_t bytes = (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    CHECK(used_ + bytes <= kBytes, "attention: a task needs ", used_ + bytes,
          " bytes of scratch, expected at most ", kBytes);
    used_ += bytes;
    return reinterpret_cast<T*>(memory_ + used_ - bytes);
  }

 private:
  static constexpr int64_t kBytes = int64_t{1} << 20;
  alignas(64) std::byte memory_[kBytes];
  int64_t used_ = 0;
};

/// [rows, heads, d], by row.
template <class T>
struct HeadRows {
  T* data = nullptr;
  int64_t heads = 0;
  int64_t d = 0;
  T* at(int64_t row, int64_t head) const { return data + (row * heads + head) * d; }
};

/// What all tasks of one call share.
template <class T>
struct AttentionOperands {
  HeadRows<const T> q;
  HeadRows<const T> k;
  HeadRows<const T> v;
  HeadMap map;
  float scale = 1;
  int64_t window = INT32_MAX;  ///< position p sees r iff r <= p and (p - r < window or r < sinks)
  int64_t sinks = 0;           ///< tokens
  int64_t tokens = 0;          ///< rows of q
};

/// Query tokens of one task: positions first .. first + count - 1 of a segment, in consecutive
/// rows.
struct Piece {
  int64_t segment;
  int64_t of_grid;       ///< the piece of the grid that it is a part of
  int64_t query_origin;  ///< row of q of position 0, if it were there: may be negative
  int64_t first;
  int64_t count;  ///< may be 0
};

/// Piece `number` of part_bound(pieces, length).
Piece find_piece(const Stretches& pieces, int64_t length, int64_t number);

/// Up to 64 keys of a run.
struct KeyPanel {
  int64_t first;  ///< position
  int64_t count;
  int64_t head;  ///< KV head
  int64_t row;   ///< of k and v, of its first key
};

/// The tokens that attend to a panel, in ascending order of position.
struct Attendees {
  static constexpr int64_t kMost = 256;

  int64_t count = 0;
  std::array<int32_t, kMost> position;  ///< within the segment
  std::array<int32_t, kMost> token;     ///< row of q
  std::array<int32_t, kMost> slot;      ///< place among the chosen blocks; -1: not a chosen block
  std::array<float, kMost> log_gate;

  void add(int64_t at, int64_t row, int64_t of_slot, float gate) {
    const auto i = static_cast<size_t>(count++);
    position[i] = static_cast<int32_t>(at);
    token[i] = static_cast<int32_t>(row);
    slot[i] = static_cast<int32_t>(of_slot);
    log_gate[i] = gate;
  }
};

/// Calls attend(tokens) with the tokens at positions [begin, end) of a segment, wherever its pieces
/// have some, in ascending order and in portions. What is left over stays in `tokens`.
template <class Attend>
void add_attendees(const Stretches& pieces, int64_t segment, int64_t begin, int64_t end,
                   Attendees& tokens, Attend&& attend) {
  for (int64_t i = pieces.begin_of(segment); i < pieces.begin_of(segment + 1); ++i) {
    const int64_t last = std::min(end, pieces.end(i));
    for (int64_t at = std::max(begin, pieces.first(i)); at < last; ++at) {
      if (tokens.count == Attendees::kMost) {
        attend(tokens);
        tokens.count = 0;
      }
      tokens.add(at, pieces.origin(i) + at, -1, 0.0f);
    }
  }
}

/// Rows of a product: heads of tokens that see at least one key of the panel.
struct RowBatch {
  static constexpr int64_t kMost = 64;

  int64_t rows = 0;
  int64_t first_vector = 0;  ///< keys [16 first_vector, 16 end_vector) of the panel are seen
  int64_t end_vector = 0;
  bool edge = false;  ///< whether some row does not see all of them
  int32_t sinks = 0;  ///< a row sees key i of the panel iff i <= high and (i >= low or i < sinks)
  std::array<int32_t, kMost> low;
  std::array<int32_t, kMost> high;
  std::array<int32_t, kMost> position;
  std::array<int32_t, kMost> token;  ///< row of q
  std::array<int32_t, kMost> head;   ///< counted from the first head of the task
  std::array<int32_t, kMost> slot;
  std::array<float, kMost> log_gate;
};

/// Cuts (attendees x heads) into batches of at most `most` rows, in order.
class RowBatches {
 public:
  RowBatches(const Attendees& tokens, const KeyPanel& panel, int64_t window, int64_t sinks,
             int64_t heads, int64_t most);
  bool next(RowBatch& batch);

 private:
  const Attendees& tokens_;
  const KeyPanel& panel_;
  int64_t window_;
  int64_t sinks_;
  int64_t heads_;
  int64_t most_;
  int64_t row_ = 0;
};

/// `x` where the row sees key 16 vector + lane of the panel, `hidden` elsewhere.
[[gnu::always_inline]] inline F32x16 hide(F32x16 x, const RowBatch& batch, size_t row,
                                          int64_t vector, float hidden) {
  constexpr I32x16 kLane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const I32x16 key = kLane + static_cast<int32_t>(vector * kLanes);
  const I32x16 seen = (key <= batch.high[row]) & ((key >= batch.low[row]) | (key < batch.sinks));
  return seen ? x : broadcast(hidden);
}

/// Tokens of a run when each has `heads` rows of `d` numbers: the state stays in the L2 cache.
int64_t run_tokens(int64_t heads, int64_t d);
/// Heads of a group that one run works on.
int64_t run_heads(int64_t heads);

/// Forward for the tokens of a piece and some heads of one group: give it the panels in ascending
/// order, then finish.
template <class T>
class ForwardRun {
 public:
  struct Output {
    HeadRows<T> o;
    float* lse;                  ///< [heads, tokens]
    const float* sink_logits;    ///< [heads] or nullptr
    float* block_lse = nullptr;  ///< [tokens, group heads, kept] of the group, or nullptr
    int64_t kept = 0;
  };

  /// `first_head` .. + `heads` are heads of q, all of one group.
  ForwardRun(const AttentionOperands<T>& in, const Output& out, const Piece& piece,
             int64_t first_head, int64_t heads, Scratch& scratch);
  /// `first_of_block`: whether the panel is the first of its block; matters to block_lse.
  void attend(const KeyPanel& panel, const Attendees& tokens, bool first_of_block);
  void finish();

 private:
  void absorb(const RowBatch& batch, const KeyPanel& panel, bool first_of_block);
  void keep_block_lse(const RowBatch& batch, size_t row, const KeyPanel& panel, bool first_of_block,
                      float shift, float total);
  float faraway_lse(const RowBatch& batch, size_t row, const KeyPanel& panel) const;
  int64_t state(const RowBatch& batch, size_t row) const {
    return (batch.position[row] - piece_.first) * heads_ + batch.head[row];
  }

  const AttentionOperands<T>& in_;
  const Output& out_;
  Piece piece_;
  int64_t first_head_;
  int64_t heads_;
  int64_t width_;       // d rounded up to 16
  Factor<T>* q_;        // [rows, d]
  float* o_;            // [rows, width]
  float* largest_;      // [rows]
  float* sums_;         // [rows, 16]: partial sums
  Factor<T>* keys_;     // [d, 64]
  Factor<T>* values_;   // [64, width]
  float* scores_;       // [16, 64]
  Factor<T>* weights_;  // [16, 64]
};

}  // namespace tessera::cpu
