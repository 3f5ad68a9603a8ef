#include "model/token_plan.h"

#include <algorithm>

#include "kernels/core/copy.h"

namespace tessera {

namespace {

using Share = SequenceLayout::Share;

/// A new i32 tensor of the arena; without memory on a plan.
TensorView numbers(Arena& arena, int64_t count, const char* name) {
  return arena.allocate(DType::kI32, {count}, name);
}

}  // namespace

struct TokenPlanner::Call {
  Stream& stream;
  Arena& arena;
  const Batch& batch;
  std::span<const int32_t> starts;  ///< in host memory
  int64_t max_segments;
  bool planned;
};

const TokenPlan& TokenPlanner::plan(Stream& stream, Arena& arena, const Batch& batch,
                                    const SparsityPlan& sparsity) {
  const bool planned = stream.on(DeviceKind::kPlan);
  plan_.sequences = batch.sequences;
  plan_.sequence_length = batch.tokens.shape()[0] / batch.sequences;
  plan_.window = sparsity.window;
  if (planned) {
    starts_.clear();
    for (int64_t s = 0; s <= plan_.sequences; ++s) {
      starts_.push_back(static_cast<int32_t>(s * plan_.sequence_length));
    }
  }
  const Call call{
      .stream = stream,
      .arena = arena,
      .batch = batch,
      .starts = planned ? std::span<const int32_t>(starts_) : batch.starts.as<int32_t>(),
      .max_segments = batch.starts.shape()[0] - 1,
      .planned = planned};
  if (mesh_.group(kContext).size() == 1) {
    plan_alone(call);
  } else {
    plan_shares(call);
  }
  find_samples(call);
  return plan_;
}

/// The sampled rows that this rank has; on a plan, as many as there can be.
void TokenPlanner::find_samples(const Call& call) {
  samples_.clear();
  const TokenRanges& owned = group_.owned[static_cast<size_t>(
      mesh_.group(kContext).size() == 1 ? 0 : mesh_.group(kContext).rank())];
  for (const int32_t token : call.batch.samples) {
    int64_t row = call.planned ? 0 : -1;
    int64_t before = 0;
    for (const TokenRange& range : owned) {
      if (token >= range.begin && token < range.end) row = before + token - range.begin;
      before += range.end - range.begin;
    }
    if (row < 0) continue;
    samples_.push_back(static_cast<int32_t>(row));
    samples_.push_back(static_cast<int32_t>(token % plan_.sequence_length));
  }
  plan_.samples = {};
  if (samples_.empty()) return;
  const int64_t pairs = std::ssize(samples_) / 2;
  plan_.samples =
      to_arena(call.stream, call.arena, host_view(samples_), "tokens.samples").reshape({pairs, 2});
}

/// What each of the rank's tokens follows, within its segment.
void TokenPlanner::find_before(const Call& call, const TokenRanges& owned) {
  const int64_t smear = options_.smear_tokens;
  plan_.before = {};
  if (smear == 0) return;
  const int64_t tokens = plan_.ids.shape()[0];
  before_.assign(static_cast<size_t>(smear * tokens), -1);
  if (!call.planned) {
    const auto ids = call.batch.tokens.as<int32_t>();
    int64_t row = 0;
    for (const TokenRange& range : owned) {
      auto next = std::upper_bound(call.starts.begin(), call.starts.end(), range.begin);
      for (int64_t token = range.begin; token < range.end; ++token, ++row) {
        while (*next <= token) ++next;
        const int64_t past = std::min<int64_t>(smear, token - *std::prev(next));
        for (int64_t j = 0; j < past; ++j) {
          before_[static_cast<size_t>(j * tokens + row)] = ids[static_cast<size_t>(token - 1 - j)];
        }
      }
    }
  }
  plan_.before = to_arena(call.stream, call.arena, host_view(before_), "tokens.before")
                     .reshape({smear, tokens});
}

/// One rank has all tokens: queries and keys are the same rows.
void TokenPlanner::plan_alone(const Call& call) {
  const int64_t tokens = plan_.all();
  const int64_t bounds = call.max_segments + 1;
  Arena& arena = call.arena;
  plan_.ids = to_arena(call.stream, arena, call.batch.tokens, "tokens.ids");
  plan_.targets = to_arena(call.stream, arena, call.batch.targets, "tokens.targets");
  plan_.share = build_segment_grid(
      call.stream, {.positions = numbers(arena, tokens, "tokens.positions"),
                    .tile_starts = numbers(arena, bounds, "tokens.tile_starts"),
                    .block_starts = numbers(arena, bounds, "tokens.block_starts"),
                    .starts = to_arena(call.stream, arena, call.batch.starts, "tokens.starts"),
                    .block = options_.block});
  plan_.sequence = plan_.share;
  plan_.pool = plan_.share;
  group_.owned.assign(1, {{0, tokens}});
  find_before(call, group_.owned[0]);
  for (RowExchange* rows : {&plan_.window_keys, &plan_.share_keys, &plan_.pool_keys}) {
    rows->plan(0, group_.owned, group_.owned);
  }
  plan_.window_key_rows = plan_.share_key_rows = plan_.pool_key_rows = tokens;
  scopes_.clear();
  for (int64_t s = 0; s <= plan_.sequences; ++s) {
    scopes_.push_back(static_cast<int32_t>(s * plan_.sequence_length));
  }
  plan_.scope_starts = to_arena(call.stream, arena, host_view(scopes_), "tokens.scope_starts");
}

void TokenPlanner::plan_shares(const Call& call) {
  const SequenceLayout layout(options_.order, plan_.sequences, plan_.sequence_length,
                              mesh_.size(Axis::kSequence), mesh_.size(Axis::kTensor));
  block_starts_ = find_blocks(call);
  cut_sequences(call, layout);
  const int64_t segments = call.max_segments;
  const int64_t sinks = options_.sink_tokens;
  const KeyBounds window =
      layout.window_bounds(Share::kSequenceRank, plan_.window, sinks, segments);
  plan_keys(call, layout, Share::kSequenceRank, window, plan_.window_keys, [&](NeededKeys& keys) {
    window_keys(call.starts, group_.pieces, plan_.window, sinks, keys);
  });
  plan_.sequence =
      plan_grid(call, layout, Share::kSequenceRank, window, "tokens.sequence", plan_.window_keys);
  plan_.window_key_rows = plan_.sequence.key_rows;

  KeyBounds all = layout.segment_bounds(Share::kContextRank, segments);
  all.rows = plan_.all();  // blocks are numbered over all sequences, also those of other ranks
  plan_keys(call, layout, Share::kContextRank, all, plan_.share_keys,
            [&](NeededKeys& keys) { segment_keys(call.starts, group_.pieces, keys); });
  plan_.share = plan_grid(call, layout, Share::kContextRank, all, "tokens.share", plan_.share_keys);
  plan_.share_key_rows = plan_.share.key_rows;

  const KeyBounds pool = layout.block_bounds(Share::kContextRank, options_.block, segments);
  plan_keys(call, layout, Share::kContextRank, pool, plan_.pool_keys, [&](NeededKeys& keys) {
    block_keys(call.starts, group_.pieces, options_.block, keys);
  });
  plan_.pool = plan_grid(call, layout, Share::kContextRank, pool, "tokens.pool", plan_.pool_keys);
  plan_.pool_key_rows = plan_.pool.key_rows;
}

/// First block of each segment.
ConstTensorView TokenPlanner::find_blocks(const Call& call) {
  blocks_.assign(static_cast<size_t>(call.max_segments + 1), 0);
  for (size_t s = 0; s + 1 < call.starts.size(); ++s) {
    const int64_t tokens = call.starts[s + 1] - call.starts[s];
    blocks_[s + 1] =
        blocks_[s] + static_cast<int32_t>((tokens + options_.block - 1) / options_.block);
  }
  return to_arena(call.stream, call.arena, host_view(blocks_), "tokens.block_starts");
}

/// This rank's tokens and targets, and where its share of each sequence begins.
void TokenPlanner::cut_sequences(const Call& call, const SequenceLayout& layout) {
  ids_.assign(static_cast<size_t>(layout.sequence_rows()), 0);
  targets_.assign(ids_.size(), 0);
  if (!call.planned) {
    const auto all_ids = call.batch.tokens.as<int32_t>();
    const auto all_targets = call.batch.targets.as<int32_t>();
    auto id = ids_.begin();
    auto target = targets_.begin();
    for (const TokenRange& range : layout.sequence_tokens(mesh_.coordinate(Axis::kSequence))) {
      id = std::copy(all_ids.begin() + range.begin, all_ids.begin() + range.end, id);
      target =
          std::copy(all_targets.begin() + range.begin, all_targets.begin() + range.end, target);
    }
  }
  scopes_.assign(static_cast<size_t>(plan_.sequences + 1), 0);
  for (const TokenRange& range :
       layout.context_tokens(mesh_.coordinate(Axis::kSequence), mesh_.coordinate(Axis::kTensor))) {
    for (int64_t s = range.begin / plan_.sequence_length; s * plan_.sequence_length < range.end;
         ++s) {
      const int64_t begin = std::max(range.begin, s * plan_.sequence_length);
      const int64_t end = std::min(range.end, (s + 1) * plan_.sequence_length);
      scopes_[static_cast<size_t>(s + 1)] += static_cast<int32_t>(end - begin);
    }
  }
  for (size_t s = 1; s < scopes_.size(); ++s) scopes_[s] += scopes_[s - 1];
  plan_.ids = to_arena(call.stream, call.arena, host_view(ids_), "tokens.ids");
  plan_.targets = to_arena(call.stream, call.arena, host_view(targets_), "tokens.targets");
  find_before(call, layout.sequence_tokens(mesh_.coordinate(Axis::kSequence)));
  plan_.scope_starts = to_arena(call.stream, call.arena, host_view(scopes_), "tokens.scope_starts");
}

/// Plans `exchange` among the ranks of the share. `need(keys)` finds what the queries of
/// group_.pieces need; afterwards group_ has the pieces and keys of this rank.
template <class NeedKeys>
void TokenPlanner::plan_keys(const Call& call, const SequenceLayout& layout, Share share,
                             const KeyBounds& bounds, RowExchange& exchange, NeedKeys&& need) {
  const bool context = share == Share::kContextRank;
  const Communicator& ranks = context ? mesh_.group(kContext) : mesh_.along(Axis::kSequence);
  group_.owned.resize(static_cast<size_t>(ranks.size()));
  group_.needed.resize(static_cast<size_t>(ranks.size()));
  const auto find = [&](int rank) {
    const auto r = static_cast<size_t>(rank);
    group_.owned[r] =
        context ? layout.context_tokens(rank / layout.tensor_ranks(), rank % layout.tensor_ranks())
                : layout.sequence_tokens(rank);
    query_pieces(call.starts, group_.owned[r], group_.pieces);
    need(group_.keys);
    group_.needed[r] = group_.keys.tokens;
  };
  for (int rank = 0; rank < ranks.size(); ++rank) {
    if (rank != ranks.rank()) find(rank);
  }
  find(ranks.rank());
  exchange.reserve_returned(bounds.returned);
  exchange.plan(ranks.rank(), group_.owned, group_.needed);
}

/// `count` pieces or runs; what is left over is empty.
TokenPlanner::RunTensors TokenPlanner::run_tensors(const Call& call, std::span<const TokenRun> runs,
                                                   int64_t count, const char* name) {
  if (call.planned) runs = {};
  CHECK(std::ssize(runs) <= count, "token plan: ", runs.size(), " runs, expected at most ", count);
  const TokenRun last = runs.empty() ? TokenRun{} : runs.back();
  const auto all = static_cast<size_t>(count);
  lists_.starts.assign(all + 1, last.row + last.count);
  lists_.firsts.assign(all, 0);
  lists_.segments.assign(all, last.segment);
  for (size_t i = 0; i < runs.size(); ++i) {
    lists_.starts[i] = runs[i].row;
    lists_.firsts[i] = runs[i].first;
    lists_.segments[i] = runs[i].segment;
  }
  return {.starts = to_arena(call.stream, call.arena, host_view(lists_.starts), name),
          .firsts = to_arena(call.stream, call.arena, host_view(lists_.firsts), name),
          .segments = to_arena(call.stream, call.arena, host_view(lists_.segments), name)};
}

/// The grid of the pieces and keys in group_.
SegmentGrid TokenPlanner::plan_grid(const Call& call, const SequenceLayout& layout, Share share,
                                    const KeyBounds& bounds, const char* name,
                                    RowExchange& exchange) {
  const int64_t count = layout.max_pieces(share, call.max_segments);
  const int64_t tokens =
      share == Share::kContextRank ? layout.context_rows() : layout.sequence_rows();
  const RunTensors pieces = run_tensors(call, group_.pieces, count, name);
  const RunTensors runs = run_tensors(call, group_.keys.runs, bounds.runs, name);
  return build_sharded_grid(call.stream,
                            {.positions = numbers(call.arena, tokens, name),
                             .tile_starts = numbers(call.arena, count + 1, name),
                             .starts = pieces.starts,
                             .firsts = pieces.firsts,
                             .piece_segments = pieces.segments,
                             .run_starts = runs.starts,
                             .run_firsts = runs.firsts,
                             .run_segments = runs.segments,
                             .block_starts = block_starts_,
                             .block = options_.block,
                             // A rank that fetches nothing has its own rows only.
                             .key_rows = exchange.is_identity() ? tokens : bounds.rows});
}

}  // namespace tessera
