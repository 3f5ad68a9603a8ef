#pragma once

#include <vector>

#include "kernels/core/arena.h"
#include "kernels/segment_grid.h"
#include "model/batch.h"
#include "model/sparsity_plan.h"
#include "parallel/process_mesh.h"
#include "parallel/row_exchange.h"
#include "parallel/sequence_layout.h"
#include "parallel/token_runs.h"

namespace tessera {

/// Which tokens of a micro-batch this rank computes, and which keys it needs for them.
///
/// The sequence rank has a part of every sequence. Local heads see all of it (`sequence`), and
/// fetch keys of their window. Everything outside of tensor-parallel regions, and the global
/// groups, is done for the share of this tensor rank (`share`), with keys of whole segments.
struct TokenPlan {
  int64_t sequences = 0;
  int64_t sequence_length = 0;
  int64_t window = 0;       ///< W of local groups
  ConstTensorView ids;      ///< [tokens of the sequence rank], i32
  ConstTensorView targets;  ///< likewise
  /// [smear tokens, tokens of the sequence rank], i32: the ids of the tokens 1, 2, ... places
  /// before, whatever rank has them; -1 where the segment has none.
  ConstTensorView before;
  SegmentGrid sequence;     ///< queries: the sequence rank's; keys: sinks and window
  SegmentGrid share;        ///< queries: this rank's share; keys: whole segments
  SegmentGrid pool;         ///< queries: this rank's share; keys: all of the blocks that end in it
  RowExchange window_keys;  ///< along the sequence axis: keys of `sequence`
  RowExchange share_keys;   ///< in the context group: keys of `share`
  RowExchange pool_keys;    ///< in the context group: keys of `pool`
  int64_t window_key_rows = 0;  ///< rows of these keys at most, whatever the segments
  int64_t share_key_rows = 0;
  int64_t pool_key_rows = 0;
  ConstTensorView samples;  ///< [samples, 2], i32: rows of the share, positions in their sequences;
                            ///< empty where this rank has none
  ConstTensorView scope_starts;  ///< [sequences + 1], i32: rows of the share by sequence

  /// Tokens of the micro-batch, over all ranks that work on it.
  int64_t all() const { return sequences * sequence_length; }
};

/// Makes the plan of each micro-batch: the host makes its lists, in memory that grows to the
/// largest and stays, and copies them to the device.
class TokenPlanner {
 public:
  struct Options {
    SequenceOrder order = SequenceOrder::kContiguous;
    int64_t block = 64;       ///< tokens per key block
    int64_t sink_tokens = 0;  ///< of local groups
    int64_t smear_tokens = 0;
  };

  /// `mesh` must outlive this.
  TokenPlanner(const ProcessMesh& mesh, const Options& options) : mesh_(mesh), options_(options) {}

  /// The plan of `batch`, whose tokens, targets and starts every rank of the context group has
  /// whole, in host memory. Its tensors are in the arena, and it is valid until the next call. No
  /// segment lies in two sequences. On a plan the sequences are segments, which need most. Throws
  /// Error(kUsage) when the tokens cannot be shared out evenly.
  const TokenPlan& plan(Stream& stream, Arena& arena, const Batch& batch,
                        const SparsityPlan& sparsity);

  const ProcessMesh& mesh() const { return mesh_; }

 private:
  /// Ranks that exchange keys, what they own, and what they need for one kind of grid.
  struct Group {
    std::vector<TokenRanges> owned;
    std::vector<TokenRanges> needed;
    std::vector<TokenRun> pieces;  ///< of this rank
    NeededKeys keys;               ///< of this rank
  };
  /// Pieces or runs as SegmentGrid wants them.
  struct RunLists {
    std::vector<int32_t> starts;
    std::vector<int32_t> firsts;
    std::vector<int32_t> segments;
  };
  struct RunTensors {
    ConstTensorView starts;
    ConstTensorView firsts;
    ConstTensorView segments;
  };
  struct Call;

  void plan_alone(const Call& call);
  void plan_shares(const Call& call);
  ConstTensorView find_blocks(const Call& call);
  void find_samples(const Call& call);
  void find_before(const Call& call, const TokenRanges& owned);
  void cut_sequences(const Call& call, const SequenceLayout& layout);
  RunTensors run_tensors(const Call& call, std::span<const TokenRun> runs, int64_t count,
                         const char* name);
  SegmentGrid plan_grid(const Call& call, const SequenceLayout& layout, SequenceLayout::Share share,
                        const KeyBounds& bounds, const char* name, RowExchange& exchange);
  template <class NeedKeys>
  void plan_keys(const Call& call, const SequenceLayout& layout, SequenceLayout::Share share,
                 const KeyBounds& bounds, RowExchange& exchange, NeedKeys&& need);

  const ProcessMesh& mesh_;
  Options options_;
  TokenPlan plan_;
  Group group_;
  std::vector<int32_t> starts_;  ///< of a plan
  ConstTensorView block_starts_;
  std::vector<int32_t> blocks_;
  std::vector<int32_t> ids_;
  std::vector<int32_t> targets_;
  std::vector<int32_t> before_;
  std::vector<int32_t> scopes_;
  std::vector<int32_t> samples_;
  RunLists lists_;
};

}  // namespace tessera
