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
          .map = head_map(a),
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

/// The one run of every segment, from its first key to its last query at least.
class WholeRuns {
 public:
  explicit WholeRuns(const SegmentGrid& grid) : runs_(runs_of(grid)), block_(grid.block) {
    check_block_count(grid, "sparse_attention");
    for (int64_t i = 0; i < runs_.size(); ++i) {
      if (runs_.count(i) == 0) continue;
      const int64_t segment = runs_.segment(i);
      CHECK(runs_.begin_of(segment) == i && runs_.first(i) == 0, "sparse_attention: segment ",
            segment, " has a run of keys from position ", runs_.first(i),
            " on, expected one run, from 0 on");
    }
    const Stretches pieces = pieces_of(grid);
    for (int64_t i = 0; i < pieces.size(); ++i) {
      if (pieces.count(i) == 0) continue;
      const int64_t run = runs_.begin_of(pieces.segment(i));
      const bool here = run < runs_.size() && runs_.segment(run) == pieces.segment(i);
      CHECK(here && runs_.end(run) >= pieces.end(i), "sparse_attention: segment ",
            pieces.segment(i), " has queries up to position ", pieces.end(i), " and ",
            here ? runs_.end(run) : 0, " keys, expected all keys to there");
    }
  }

  /// Calls attend(panel, first_of_block) for the panels of a block of a segment.
  template <class Attend>
  void for_each_panel(int64_t block, int64_t segment, int64_t head, Attend&& attend) const {
    const int64_t run = runs_.begin_of(segment);
    const int64_t end = std::min((block + 1) * block_, runs_.end(run));
    for (int64_t key = block * block_; key < end; key += kPanel) {
      attend(KeyPanel{key, std::min(kPanel, end - key), head, runs_.row(run) + key},
             key == block * block_);
    }
  }

 private:
  Stretches runs_;
  int64_t block_;
};

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
    const int64_t tiles_before =
        piece.first / kTile - pieces_of(a.grid).first(piece.of_grid) / kTile;
    const int64_t first = tile_starts[static_cast<size_t>(piece.of_grid)] + tiles_before;
    for (int64_t i = 0; tile_position(i) < end(); ++i) {
      tiles_[static_cast<size_t>(i)] = {tile_position(i) / block_tokens_, list_.offsets[first + i],
                                        list_.offsets[first + i + 1]};
    }
    slots_.fill(0);
  }

  int64_t blocks() const { return (end() - 1) / block_tokens_ + 1; }

  /// Fills in who attends to a block; call it for every block in ascending order.
  void attendees(int64_t block, Attendees& tokens) {
    tokens.count = 0;
    for (int64_t i = 0; tile_position(i) < end(); ++i) {
      Tile& tile = tiles_[static_cast<size_t>(i)];
      const int64_t first = tile_position(i);
      if (block > tile.own_block) continue;
      if (block < rule_.sink_blocks || block > tile.own_block - rule_.window_blocks) {
        const int64_t last = std::min(first + kTile, end());
        for (int64_t at = std::max(first, piece_.first); at < last; ++at) {
          tokens.add(at, piece_.query_origin + at, -1, 0.0f);
        }
        continue;
      }
      if (tile.next == tile.end || list_.entries[tile.next] != block) continue;
      for (uint32_t mask = list_.masks[tile.next++]; mask != 0; mask &= mask - 1) {
        const int64_t at = first + std::countr_zero(mask);
        const int64_t token = piece_.query_origin + at;
        const int64_t slot = slots_[static_cast<size_t>(at - piece_.first)]++;
        choices_.expect_block(token, slot, block);
        tokens.add(at, token, slot, choices_.log_gate(token, slot));
      }
    }
  }

 private:
  /// Where tile i of the piece begins; the first one may begin before the piece.
  int64_t tile_position(int64_t i) const { return (piece_.first / kTile + i) * kTile; }
  int64_t end() const { return piece_.first + piece_.count; }

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
  const Stretches stretches = pieces_of(a.grid);
  const HeadMap map = head_map(a);
  const auto groups = static_cast<int64_t>(a.groups.size());
  const int64_t heads = run_heads(map.group_heads);
  const int64_t length = run_tokens(heads, a.q.shape()[2]);
  const int64_t pieces = part_bound(stretches, length);
  threads.for_each(pieces * groups, [&](int64_t index) {
    // The last pieces have most to do and come first, so that the tasks end together.
    const Piece piece = find_piece(stretches, length, pieces - 1 - index / groups);
    if (piece.count == 0) return;
    const int32_t group = a.groups[static_cast<size_t>(index % groups)];
    for (int64_t head = 0; head < map.count_of(group); head += heads) {
      task(piece, index % groups, map.begin_of(group) + head,
           std::min(heads, map.count_of(group) - head));
    }
  });
}

template <class T>
void forward(ThreadPool& threads, const SparseAttentionForward& a) {
  const AttentionOperands<T> in = operands<T>(a);
  const WholeRuns runs(a.grid);
  for_each_query_task(
      threads, a, [&](const Piece& piece, int64_t group, int64_t first_head, int64_t heads) {
        const int64_t kept = a.selection.kept();
        float* block_lse = a.block_lse.empty() ? nullptr
                                               : a.block_lse.as<float>().data() +
                                                     group * in.tokens * in.map.group_heads * kept;
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
          runs.for_each_panel(
              block, piece.segment, a.groups[static_cast<size_t>(group)],
              [&](const KeyPanel& panel, bool first) { run.attend(panel, tokens, first); });
        }
        run.finish();
      });
}

template <class T>
void query_gradient(ThreadPool& threads, const SparseAttentionBackward& a,
                    const AttentionOperands<T>& in, const GradientOperands<T>& gradient) {
  const int64_t kept = a.selection.kept();
  const WholeRuns runs(a.grid);
  constexpr int64_t kGrain = 1 << 16;
  threads.for_ranges(a.dlog_gate.elements(), kGrain, [&](int64_t begin, int64_t end) {
    std::fill_n(a.dlog_gate.as<float>().data() + begin, end - begin, 0.0f);
  });
  for_each_query_task(
      threads, a, [&](const Piece& piece, int64_t group, int64_t first_head, int64_t heads) {
        float* dlog_gate = a.dlog_gate.as<float>().data() + group * in.tokens * kept;
        const typename QueryGradientRun<T>::Output out{
            .dq = {a.dq.as<T>().data(), in.q.heads, in.q.d}, .dlog_gate = dlog_gate, .kept = kept};
        Scratch scratch;
        QueryGradientRun<T> run(in, gradient, out, piece, first_head, heads, scratch);
        BlockWalk walk(a, piece, group);
        Attendees tokens;
        for (int64_t block = 0; block < walk.blocks(); ++block) {
          walk.attendees(block, tokens);
          if (tokens.count == 0) continue;
          runs.for_each_panel(block, piece.segment, a.groups[static_cast<size_t>(group)],
                              [&](const KeyPanel& panel, bool) { run.attend(panel, tokens); });
        }
        run.finish();
      });
}

/// Calls attend(tokens) with those that attend to a block, in ascending order and in portions.
template <class Attend>
void for_each_attendee(const SparseAttentionBackward& a, const GridRange& block, int64_t number,
                       int64_t group, Attend&& attend) {
  Attendees tokens;
  const int64_t first = block.number * a.grid.block;
  const int64_t forced =
      block.number < a.rule.sink_blocks ? INT32_MAX : first + a.rule.window_blocks * a.grid.block;
  add_attendees(pieces_of(a.grid), block.segment, first, forced, tokens, attend);
  const List list(a.lists.block_offsets, a.lists.block_tiles, a.lists.block_masks, group);
  const Choices choices(a, group);
  for (int64_t i = list.offsets[number]; i < list.offsets[number + 1]; ++i) {
    if (tokens.count + kTile > Attendees::kMost) {
      attend(tokens);
      tokens.count = 0;
    }
    const GridRange tile = find_tile(a.grid, list.entries[i]);
    for (uint32_t mask = list.masks[i]; mask != 0; mask &= mask - 1) {
      const int64_t at = tile.number * kTile + std::countr_zero(mask);
      const int64_t token = tile.first + at - tile.position;
      const int64_t slot = choices.find_slot(token, block.number);
      tokens.add(at, token, slot, choices.log_gate(token, slot));
    }
  }
  attend(tokens);
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
    for (int64_t key = 0; key < block.tokens; key += kPanel) {
      const KeyPanel panel{block.position + key, std::min(kPanel, block.tokens - key),
                           a.groups[static_cast<size_t>(group)], block.first + key};
      Scratch scratch;
      KeyGradientPanel<T> run(in, gradient, panel, scratch);
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
                            .map = head_map(a)});
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
