#include "kernels/sparse_attention.h"

#include <algorithm>
#include <bit>

#include "kernels/attention_gradient.h"

namespace tessera::cpu {

namespace {

constexpr int64_t kTile = SegmentGrid::kTile;

template <class T, class A>
AttentionOperands<T> operands(const A& a) {
  const int64_t d = a.q.shape()[2];
  return {.q = {a.q.template as<T>().data(), a.q.shape()[1], d},
          .k = {a.k.template as<T>().data(), a.k.shape()[1], d},
          .v = {a.v.template as<T>().data(), a.v.shape()[1], d},
          .scale = a.scale,
          .tokens = a.q.shape()[0]};
}

/// What the tokens of one group chose, and by which gate.
class Choices {
 public:
  template <class A>
  Choices(const A& a, int64_t group)
      : slots_(a.selection.kept() + 1),
        blocks_(a.selection.blocks.template as<int32_t>().data() +
                group * a.grid.tokens() * slots_),
        scores_(a.selection.scores.template as<float>().data() + group * a.grid.tokens() * slots_),
        counts_(a.selection.counts.template as<int32_t>().data() + group * a.grid.tokens()),
        strength_(a.ramp.strength),
        width_(a.ramp.widths.template as<float>()[static_cast<size_t>(group)]) {}

  int64_t kept() const { return slots_ - 1; }

  float log_gate(int64_t token, int64_t slot) const {
    const int32_t* blocks = blocks_ + token * slots_;
    const float* scores = scores_ + token * slots_;
    if (blocks[kept()] < 0) return 0;  // nothing was dropped
    return tessera::log_gate(scores[slot], scores[kept()], strength_, width_);
  }
  void expect_block(int64_t token, int64_t slot, int64_t block) const {
    CHECK(slot < kept() && blocks_[token * slots_ + slot] == block,
          "sparse_attention: the lists say that token ", token, " chose block ", block,
          ", the selection does not");
  }
  int64_t find_slot(int64_t token, int64_t block) const {
    const int32_t* first = blocks_ + token * slots_;
    const int64_t slot = std::lower_bound(first, first + counts_[token], block) - first;
    expect_block(token, slot, block);
    return slot;
  }

 private:
  int64_t slots_;
  const int32_t* blocks_;  // [tokens, k + 1]
  const float* scores_;    // [tokens, k + 1]
  const int32_t* counts_;  // [tokens]
  float strength_;
  float width_;
};

/// A list of kernels/block_selection.h for one group.
struct List {
  List(const TensorView& all_offsets, const TensorView& all_entries, const TensorView& all_masks,
       int64_t group)
      : offsets(all_offsets.as<int32_t>().data() + group * all_offsets.shape()[1]),
        entries(all_entries.as<int32_t>().data() + group * all_entries.shape()[1]),
        masks(all_masks.as<uint16_t>().data() + group * all_masks.shape()[1]) {}

  const int32_t* offsets;
  const int32_t* entries;
  const uint16_t* masks;
};

/// Calls attend(panel, first_of_block) for the panels of a block.
template <class Attend>
void for_each_panel(int64_t block, int64_t block_tokens, const Piece& piece, int64_t head,
                    Attend&& attend) {
  const int64_t end = std::min((block + 1) * block_tokens, piece.segment_tokens);
  for (int64_t key = block * block_tokens; key < end; key += kPanel) {
    attend(KeyPanel{key, std::min(kPanel, end - key), head}, key == block * block_tokens);
  }
}

/// The blocks that the tokens of a piece attend to, in ascending order.
class BlockWalk {
 public:
  template <class A>
  BlockWalk(const A& a, const Piece& piece, int64_t group)
      : piece_(piece),
        block_tokens_(a.grid.block),
        rule_(a.rule),
        choices_(a, group),
        list_(a.lists.tile_offsets, a.lists.tile_blocks, a.lists.tile_masks, group) {
    const auto tile_starts = a.grid.tile_starts.template as<int32_t>();
    const int64_t first = tile_starts[static_cast<size_t>(piece.segment)] + piece.first / kTile;
    for (int64_t i = 0; i * kTile < piece.count; ++i) {
      tiles_[static_cast<size_t>(i)] = {(piece.first + i * kTile) / block_tokens_,
                                        list_.offsets[first + i], list_.offsets[first + i + 1]};
    }
    slots_.fill(0);
  }

  int64_t blocks() const { return (piece_.first + piece_.count - 1) / block_tokens_ + 1; }

  /// Fills in who attends to a block; call it for every block in ascending order.
  void attendees(int64_t block, Attendees& tokens) {
    tokens.count = 0;
    for (int64_t i = 0; i * kTile < piece_.count; ++i) {
      Tile& tile = tiles_[static_cast<size_t>(i)];
      const int64_t first = piece_.first + i * kTile;
      if (block > tile.own_block) continue;
      if (block < rule_.sink_blocks || block > tile.own_block - rule_.window_blocks) {
        const int64_t end = std::min(first + kTile, piece_.first + piece_.count);
        for (int64_t at = first; at < end; ++at) tokens.add(at, -1, 0.0f);
        continue;
      }
      if (tile.next == tile.end || list_.entries[tile.next] != block) continue;
      for (uint32_t mask = list_.masks[tile.next++]; mask != 0; mask &= mask - 1) {
        const int64_t at = first + std::countr_zero(mask);
        const int64_t token = piece_.origin + at;
        const int64_t slot = slots_[static_cast<size_t>(at - piece_.first)]++;
        choices_.expect_block(token, slot, block);
        tokens.add(at, slot, choices_.log_gate(token, slot));
      }
    }
  }

 private:
  Piece piece_;
  int64_t block_tokens_;
  BlockRule rule_;
  Choices choices_;
  List list_;
  struct Tile {
    int64_t own_block;
    int64_t next;  // entry of its list
    int64_t end;
  };
  std::array<Tile, Attendees::kMost / kTile> tiles_;
  std::array<int32_t, Attendees::kMost> slots_;  // next slot of each token
};

/// The query-major kernels: one task for each piece and group, calling
/// task(piece, index of the group, first head, heads) for some heads after another.
template <class A, class Task>
void for_each_query_task(ThreadPool& threads, const A& a, const Task& task) {
  const auto starts = a.grid.starts.template as<int32_t>();
  const auto groups = static_cast<int64_t>(a.groups.size());
  const int64_t group_heads = a.q.shape()[1] / a.k.shape()[1];
  const int64_t heads = run_heads(group_heads);
  const int64_t length = run_tokens(heads, a.q.shape()[2]);
  const int64_t pieces = a.grid.tokens() / length + a.grid.segments();
  threads.for_each(pieces * groups, [&](int64_t index) {
    // The last pieces have most to do and come first, so that the tasks end together.
    const Piece piece = find_piece(starts, length, pieces - 1 - index / groups);
    if (piece.count == 0) return;
    const int64_t first = a.groups[static_cast<size_t>(index % groups)] * group_heads;
    for (int64_t head = 0; head < group_heads; head += heads) {
      task(piece, index % groups, first + head, std::min(heads, group_heads - head));
    }
  });
}

template <class T>
void forward(ThreadPool& threads, const SparseAttentionForward& a) {
  const AttentionOperands<T> in = operands<T>(a);
  const int64_t group_heads = in.q.heads / in.k.heads;
  for_each_query_task(
      threads, a, [&](const Piece& piece, int64_t group, int64_t first_head, int64_t heads) {
        const int64_t kept = a.selection.kept();
        float* block_lse = a.block_lse.empty() ? nullptr
                                               : a.block_lse.as<float>().data() +
                                                     group * in.tokens * group_heads * kept;
        const typename ForwardRun<T>::Output out{
            .o = {a.o.as<T>().data(), in.q.heads, in.q.d},
            .lse = a.lse.as<float>().data(),
            .sink_logits = a.sink_logits.empty() ? nullptr : a.sink_logits.as<float>().data(),
            .block_lse = block_lse,
            .kept = kept};
        Scratch scratch;
        ForwardRun<T> run(in, out, piece, first_head, heads, scratch);
        BlockWalk walk(a, piece, group);
        Attendees tokens;
        for (int64_t block = 0; block < walk.blocks(); ++block) {
          walk.attendees(block, tokens);
          if (tokens.count == 0) continue;
          for_each_panel(
              block, a.grid.block, piece, first_head / group_heads,
              [&](const KeyPanel& panel, bool first) { run.attend(panel, tokens, first); });
        }
        run.finish();
      });
}

template <class T>
void query_gradient(ThreadPool& threads, const SparseAttentionBackward& a,
                    const AttentionOperands<T>& in, const GradientOperands<T>& gradient) {
  const int64_t group_heads = in.q.heads / in.k.heads;
  const int64_t kept = a.selection.kept();
  for_each_query_task(
      threads, a, [&](const Piece& piece, int64_t group, int64_t first_head, int64_t heads) {
        float* dlog_gate = a.dlog_gate.as<float>().data() + group * in.tokens * kept;
        if (first_head % group_heads == 0) {
          std::fill_n(dlog_gate + (piece.origin + piece.first) * kept, piece.count * kept, 0.0f);
        }
        const typename QueryGradientRun<T>::Output out{
            .dq = {a.dq.as<T>().data(), in.q.heads, in.q.d}, .dlog_gate = dlog_gate, .kept = kept};
        Scratch scratch;
        QueryGradientRun<T> run(in, gradient, out, piece, first_head, heads, scratch);
        BlockWalk walk(a, piece, group);
        Attendees tokens;
        for (int64_t block = 0; block < walk.blocks(); ++block) {
          walk.attendees(block, tokens);
          if (tokens.count == 0) continue;
          for_each_panel(block, a.grid.block, piece, first_head / group_heads,
                         [&](const KeyPanel& panel, bool) { run.attend(panel, tokens); });
        }
        run.finish();
      });
}

/// Calls attend(tokens) with those that attend to a block, in ascending order and in portions.
template <class Attend>
void for_each_attendee(const SparseAttentionBackward& a, const GridRange& block, int64_t number,
                       int64_t group, Attend&& attend) {
  const auto starts = a.grid.starts.as<int32_t>();
  const auto segment = static_cast<size_t>(block.segment);
  const int64_t origin = starts[segment];
  const int64_t length = starts[segment + 1] - origin;
  Attendees tokens;
  const auto flush = [&] {
    if (tokens.count > 0) attend(tokens);
    tokens.count = 0;
  };
  const int64_t window_end = std::min(length, (block.number + a.rule.window_blocks) * a.grid.block);
  const int64_t forced_end = block.number < a.rule.sink_blocks ? length : window_end;
  for (int64_t at = block.number * a.grid.block; at < forced_end; ++at) {
    tokens.add(at, -1, 0.0f);
    if (tokens.count == Attendees::kMost) flush();
  }
  const List list(a.lists.block_offsets, a.lists.block_tiles, a.lists.block_masks, group);
  const Choices choices(a, group);
  const int64_t first_tile = a.grid.tile_starts.as<int32_t>()[segment];
  for (int64_t i = list.offsets[number]; i < list.offsets[number + 1]; ++i) {
    if (tokens.count + kTile > Attendees::kMost) flush();
    for (uint32_t mask = list.masks[i]; mask != 0; mask &= mask - 1) {
      const int64_t at = (list.entries[i] - first_tile) * kTile + std::countr_zero(mask);
      const int64_t slot = choices.find_slot(origin + at, block.number);
      tokens.add(at, slot, choices.log_gate(origin + at, slot));
    }
  }
  flush();
}

template <class T>
void key_gradient(ThreadPool& threads, const SparseAttentionBackward& a,
                  const AttentionOperands<T>& in, const GradientOperands<T>& gradient) {
  const HeadRows<T> dk{a.dk.as<T>().data(), in.k.heads, in.k.d};
  const HeadRows<T> dv{a.dv.as<T>().data(), in.k.heads, in.k.d};
  const auto groups = static_cast<int64_t>(a.groups.size());
  threads.for_each(block_count(a.grid) * groups, [&](int64_t index) {
    const int64_t group = index % groups;
    const GridRange block = find_block(a.grid, index / groups);
    const int64_t origin = block.first - block.number * a.grid.block;
    for (int64_t key = 0; key < block.tokens; key += kPanel) {
      const KeyPanel panel{block.number * a.grid.block + key, std::min(kPanel, block.tokens - key),
                           a.groups[static_cast<size_t>(group)]};
      Scratch scratch;
      KeyGradientPanel<T> run(in, gradient, origin, panel, scratch);
      for_each_attendee(a, block, index / groups, group,
                        [&](const Attendees& tokens) { run.attend(tokens); });
      run.finish(dk, dv);
    }
  });
}

}  // namespace

void sparse_attention_forward(ThreadPool& threads, const SparseAttentionForward& a) {
  with_float_type(a.q.dtype(), [&]<class T>() { forward<T>(threads, a); });
}

void sparse_attention_backward(ThreadPool& threads, const SparseAttentionBackward& a) {
  attention_delta(threads, {.delta = a.delta,
                            .dsink_logits = a.dsink_logits,
                            .d_o = a.d_o,
                            .o = a.o,
                            .lse = a.lse,
                            .sink_logits = a.sink_logits,
                            .groups = a.groups,
                            .group_heads = a.q.shape()[1] / a.k.shape()[1]});
  with_float_type(a.q.dtype(), [&]<class T>() {
    const AttentionOperands<T> in = operands<T>(a);
    const GradientOperands<T> gradient{.d_o = {a.d_o.as<T>().data(), in.q.heads, in.q.d},
                                       .lse = a.lse.as<float>().data(),
                                       .delta = a.delta.as<float>().data()};
    query_gradient(threads, a, in, gradient);
    key_gradient(threads, a, in, gradient);
  });
}

}  // namespace tessera::cpu
