#pragma once

#include <cstdint>

#include "parallel/token_ranges.h"

namespace tessera {

enum class SequenceOrder : uint8_t { kContiguous, kZigzag };

/// Bounds that hold on every rank, for any segments of which none lies in two sequences.
struct KeyBounds {
  int64_t rows;      ///< of NeededKeys
  int64_t runs;      ///< of NeededKeys
  int64_t returned;  ///< RowExchange::rows_returned
};

/// Which rank of a context group (sequence ranks x tensor ranks) holds which tokens of a
/// micro-batch of `sequences` sequences of `length` tokens.
///
/// Contiguous: sequence rank r of P holds the r-th of P parts of every sequence. Zigzag: parts r
/// and 2P - 1 - r of 2P, so that under a causal mask all ranks have the same work.
class SequenceLayout {
 public:
  /// Throws Error(kUsage) with the nearest lengths that fit, when length cannot be cut evenly.
  SequenceLayout(SequenceOrder order, int64_t sequences, int64_t length, int sequence_ranks,
                 int tensor_ranks);

  int sequence_ranks() const { return sequence_ranks_; }
  int tensor_ranks() const { return tensor_ranks_; }
  /// Tokens of a sequence rank, and of a rank of the context group.
  int64_t sequence_rows() const { return sequences_ * length_ / sequence_ranks_; }
  int64_t context_rows() const { return sequence_rows() / tensor_ranks_; }

  /// What a sequence rank holds: its part of every sequence, sequence by sequence.
  TokenRanges sequence_tokens(int sequence_rank) const;
  /// What a rank of the context group owns: the tensor_rank-th of `tensor_ranks` parts of these
  /// rows. All ranks of the group together own every token once.
  TokenRanges context_tokens(int sequence_rank, int tensor_rank) const;

  /// Whose queries: sequence_tokens, exchanged among the sequence ranks, or context_tokens,
  /// exchanged in the whole context group.
  enum class Share : uint8_t { kSequenceRank, kContextRank };
  /// Bounds of query_pieces, window_keys, segment_keys and block_keys. `max_segments` counts the
  /// segments of the micro-batch that are not empty.
  int64_t max_pieces(Share share, int64_t max_segments) const;
  KeyBounds window_bounds(Share share, int64_t window, int64_t sinks, int64_t max_segments) const;
  KeyBounds segment_bounds(Share share, int64_t max_segments) const;
  KeyBounds block_bounds(Share share, int64_t block, int64_t max_segments) const;

 private:
  bool fits(int64_t length) const;
  int64_t parts() const {
    return order_ == SequenceOrder::kZigzag ? 2 * sequence_ranks_ : sequence_ranks_;
  }
  int ranks(Share share) const;
  /// The tokens of a rank of the group of `share`, cut where sequences begin.
  TokenRanges share_tokens(Share share, int rank) const;

  SequenceOrder order_;
  int64_t sequences_;
  int64_t length_;
  int sequence_ranks_;
  int tensor_ranks_;
};

}  // namespace tessera
