#include "model/token_plan.h"

#include <algorithm>

namespace tessera {

namespace {

using Share = SequenceLayout::Share;

/// A new i32 tensor of the arena; without memory on a plan.
TensorView numbers(Arena& arena, int64_t count, const char* name) {
  return arena.allocate(DType::kI32, {count}, name);
}

/// Fills `starts`, `firsts` and `segments` of pieces or runs; what is left over is empty.
void write_runs(std::span<const TokenRun> runs, const TensorView& starts, const TensorView& firsts,
                const TensorView& segments) {
  const auto rows = starts.as<int32_t>();
  const auto first = firsts.as<int32_t>();
  const auto segment = segments.as<int32_t>();
  CHECK(runs.size() <= first.size(), "token plan: ", runs.size(), " runs, expected at most ",
        first.size());
  const int32_t end = runs.empty() ? 0 : runs.back().row + runs.back().count;
  for (size_t i = 0; i < first.size(); ++i) {
    const bool used = i < runs.size();
    rows[i] = used ? runs[i].row : end;
    first[i] = used ? runs[i].first : 0;
    segment[i] = used ? runs[i].segment : (runs.empty() ? 0 : runs.back().segment);
  }
  rows[first.size()] = end;
}

}  // namespace

struct TokenPlanner::Call {
  Stream& stream;
  Arena& arena;
  const Batch& batch;
  std::span<const int32_t> starts;  ///< in host memory
  int64_t max_segments;
  TensorView block_starts;
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
  const int64_t bounds = batch.starts.shape()[0];
  const Call call{
      .stream = stream,
      .arena = arena,
      .batch = batch,
      .starts = planned ? std::span<const int32_t>(starts_) : batch.starts.as<int32_t>(),
      .max_segments = bounds - 1,
      .block_starts = numbers(arena, bounds, "tokens.block_starts"),
      .planned = planned};
  if (mesh_.group(kContext).size() == 1) {
    plan_alone(call);
  } else {
    plan_shares(call);
  }
  return plan_;
}

/// One rank has all tokens: queries and keys are the same rows.
void TokenPlanner::plan_alone(const Call& call) {
  const int64_t tokens = plan_.all();
  plan_.ids = call.batch.tokens;
  plan_.targets = call.batch.targets;
  plan_.share = build_segment_grid(
      call.stream, {.positions = numbers(call.arena, tokens, "tokens.positions"),
                    .tile_starts = numbers(call.arena, call.max_segments + 1, "tokens.tile_starts"),
                    .block_starts = call.block_starts,
                    .starts = call.batch.starts,
                    .block = options_.block});
  plan_.sequence = plan_.share;
  plan_.pool = plan_.share;
  group_.owned.assign(1, {{0, tokens}});
  for (RowExchange* rows : {&plan_.window_keys, &plan_.share_keys, &plan_.pool_keys}) {
    rows->plan(0, group_.owned, group_.owned);
  }
  plan_.window_key_rows = plan_.share_key_rows = plan_.pool_key_rows = tokens;
  const TensorView scopes = numbers(call.arena, plan_.sequences + 1, "tokens.scope_starts");
  plan_.scope_starts = scopes;
  if (call.planned) return;
  const auto rows = scopes.as<int32_t>();
  for (size_t s = 0; s < rows.size(); ++s) {
    rows[s] = static_cast<int32_t>(static_cast<int64_t>(s) * plan_.sequence_length);
  }
}

void TokenPlanner::plan_shares(const Call& call) {
  const SequenceLayout layout(options_.order, plan_.sequences, plan_.sequence_length,
                              mesh_.size(Axis::kSequence), mesh_.size(Axis::kTensor));
  if (!call.planned) {
    const auto blocks = call.block_starts.as<int32_t>();
    blocks[0] = 0;
    for (size_t s = 0; s + 1 < call.starts.size(); ++s) {
      const int64_t tokens = call.starts[s + 1] - call.starts[s];
      blocks[s + 1] =
          blocks[s] + static_cast<int32_t>((tokens + options_.block - 1) / options_.block);
    }
  }
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

/// This rank's tokens and targets, and where its share of each sequence begins.
void TokenPlanner::cut_sequences(const Call& call, const SequenceLayout& layout) {
  const int64_t tokens = layout.sequence_rows();
  const TensorView ids = numbers(call.arena, tokens, "tokens.ids");
  const TensorView targets = numbers(call.arena, tokens, "tokens.targets");
  const TensorView scopes = numbers(call.arena, plan_.sequences + 1, "tokens.scope_starts");
  plan_.ids = ids;
  plan_.targets = targets;
  plan_.scope_starts = scopes;
  if (call.planned) return;
  const auto all_ids = call.batch.tokens.as<int32_t>();
  const auto all_targets = call.batch.targets.as<int32_t>();
  auto id = ids.as<int32_t>().begin();
  auto target = targets.as<int32_t>().begin();
  for (const TokenRange& range : layout.sequence_tokens(mesh_.coordinate(Axis::kSequence))) {
    id = std::copy(all_ids.begin() + range.begin, all_ids.begin() + range.end, id);
    target = std::copy(all_targets.begin() + range.begin, all_targets.begin() + range.end, target);
  }
  const auto rows = scopes.as<int32_t>();
  std::fill(rows.begin(), rows.end(), 0);
  for (const TokenRange& range :
       layout.context_tokens(mesh_.coordinate(Axis::kSequence), mesh_.coordinate(Axis::kTensor))) {
    for (int64_t s = range.begin / plan_.sequence_length; s * plan_.sequence_length < range.end;
         ++s) {
      const int64_t begin = std::max(range.begin, s * plan_.sequence_length);
      const int64_t end = std::min(range.end, (s + 1) * plan_.sequence_length);
      rows[static_cast<size_t>(s + 1)] += static_cast<int32_t>(end - begin);
    }
  }
  for (size_t s = 1; s < rows.size(); ++s) rows[s] += rows[s - 1];
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

/// The grid of the pieces and keys in group_.
SegmentGrid TokenPlanner::plan_grid(const Call& call, const SequenceLayout& layout, Share share,
                                    const KeyBounds& bounds, const char* name,
                                    RowExchange& exchange) {
  const int64_t pieces = layout.max_pieces(share, call.max_segments);
  const int64_t tokens =
      share == Share::kContextRank ? layout.context_rows() : layout.sequence_rows();
  Arena& arena = call.arena;
  const TensorView starts = numbers(arena, pieces + 1, name);
  const TensorView firsts = numbers(arena, pieces, name);
  const TensorView segments = numbers(arena, pieces, name);
  const TensorView run_starts = numbers(arena, bounds.runs + 1, name);
  const TensorView run_firsts = numbers(arena, bounds.runs, name);
  const TensorView run_segments = numbers(arena, bounds.runs, name);
  if (!call.planned) {
    write_runs(group_.pieces, starts, firsts, segments);
    write_runs(group_.keys.runs, run_starts, run_firsts, run_segments);
  }
  return build_sharded_grid(call.stream,
                            {.positions = numbers(arena, tokens, name),
                             .tile_starts = numbers(arena, pieces + 1, name),
                             .starts = starts,
                             .firsts = firsts,
                             .piece_segments = segments,
                             .run_starts = run_starts,
                             .run_firsts = run_firsts,
                             .run_segments = run_segments,
                             .block_starts = call.block_starts,
                             .block = options_.block,
                             // A rank that fetches nothing has its own rows only.
                             .key_rows = exchange.is_identity() ? tokens : bounds.rows});
}

}  // namespace tessera
