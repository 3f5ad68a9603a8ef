#include "parallel/sequence_layout.h"

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/core/error.h"

namespace tessera {

namespace {

/// How many tokens of [begin, end) are in `ranges`.
int64_t overlap(const TokenRanges& ranges, int64_t begin, int64_t end) {
  auto range = std::upper_bound(ranges.begin(), ranges.end(), begin,
                                [](int64_t token, const TokenRange& r) { return token < r.end; });
  int64_t tokens = 0;
  for (; range != ranges.end() && range->begin < end; ++range) {
    tokens += std::min(end, range->end) - std::max(begin, range->begin);
  }
  return tokens;
}

/// As append, but does not join.
void append_apart(TokenRanges& ranges, TokenRange range) {
  if (range.begin < range.end) ranges.push_back(range);
}

}  // namespace

SequenceLayout::SequenceLayout(SequenceOrder order, int64_t sequences, int64_t length,
                               int sequence_ranks, int tensor_ranks)
    : order_(order),
      sequences_(sequences),
      length_(length),
      sequence_ranks_(sequence_ranks),
      tensor_ranks_(tensor_ranks) {
  CHECK(sequences >= 1 && length >= 1 && sequence_ranks >= 1 && tensor_ranks >= 1,
        "sequence_layout: ", sequences, " sequences of ", length, " tokens on sequence ",
        sequence_ranks, " x tensor ", tensor_ranks, " ranks, expected at least 1 of each");
  if (fits(length)) return;
  int64_t below = length;
  int64_t above = length;
  while (below > 0 && !fits(below)) --below;
  while (!fits(above)) ++above;
  const std::string lower = below > 0 ? concat(below, " and ") : "";
  throw Error(ExitCode::kUsage,
              concat("sequence_layout: ", sequences, " sequences of ", length,
                     " tokens cannot be cut evenly, ", parts(), " parts of each sequence and ",
                     tensor_ranks, " parts of each sequence rank's tokens; the nearest ",
                     below > 0 ? "lengths that fit are " : "length that fits is ", lower, above));
}

bool SequenceLayout::fits(int64_t length) const {
  return length % parts() == 0 && sequences_ * length / sequence_ranks_ % tensor_ranks_ == 0;
}

TokenRanges SequenceLayout::sequence_tokens(int sequence_rank) const {
  CHECK(sequence_rank >= 0 && sequence_rank < sequence_ranks_, "sequence_layout: sequence rank is ",
        sequence_rank, ", expected 0 to ", sequence_ranks_ - 1);
  TokenRanges tokens;
  const int64_t part = length_ / parts();
  for (int64_t sequence = 0; sequence < sequences_; ++sequence) {
    const int64_t origin = sequence * length_;
    const int64_t first = origin + sequence_rank * part;
    append(tokens, {first, first + part});
    if (order_ == SequenceOrder::kContiguous) continue;
    const int64_t second = origin + (parts() - 1 - sequence_rank) * part;
    append(tokens, {second, second + part});
  }
  return tokens;
}

TokenRanges SequenceLayout::context_tokens(int sequence_rank, int tensor_rank) const {
  CHECK(tensor_rank >= 0 && tensor_rank < tensor_ranks_, "sequence_layout: tensor rank is ",
        tensor_rank, ", expected 0 to ", tensor_ranks_ - 1);
  return select_rows(sequence_tokens(sequence_rank), tensor_rank * context_rows(), context_rows());
}

int SequenceLayout::ranks(Share share) const {
  return share == Share::kSequenceRank ? sequence_ranks_ : sequence_ranks_ * tensor_ranks_;
}

TokenRanges SequenceLayout::share_tokens(Share share, int rank) const {
  const TokenRanges joined = share == Share::kSequenceRank
                                 ? sequence_tokens(rank)
                                 : context_tokens(rank / tensor_ranks_, rank % tensor_ranks_);
  TokenRanges apart;
  for (const TokenRange& range : joined) {
    for (int64_t at = range.begin; at < range.end;) {
      const int64_t end = std::min(range.end, (at / length_ + 1) * length_);
      append_apart(apart, {at, end});
      at = end;
    }
  }
  return apart;
}

int64_t SequenceLayout::max_pieces(Share share, int64_t max_segments) const {
  int64_t most = 0;
  for (int rank = 0; rank < ranks(share); ++rank) {
    const TokenRanges tokens = share_tokens(share, rank);
    // Every border between segments adds one piece; those between sequences are counted already.
    const int64_t borders = std::max<int64_t>(0, max_segments - sequences_);
    const int64_t pieces = static_cast<int64_t>(tokens.size()) + borders;
    most = std::max(most, std::min(pieces, rows_of(tokens)));
  }
  return most;
}

KeyBounds SequenceLayout::window_bounds(Share share, int64_t window, int64_t sinks,
                                        int64_t max_segments) const {
  KeyBounds bounds{0, 0, 0};
  std::vector<TokenRanges> tokens;
  for (int rank = 0; rank < ranks(share); ++rank) tokens.push_back(share_tokens(share, rank));
  // Only a piece at the begin of a range can begin inside a segment: just before it are at most
  // window - 1 tokens, and anywhere before it in its sequence the sinks of its segment.
  const auto start_of = [&](const TokenRange& range) { return range.begin / length_ * length_; };
  const auto halo_of = [&](const TokenRange& range) {
    return std::max(start_of(range), range.begin - (window - 1));
  };
  for (const TokenRanges& own : tokens) {
    int64_t rows = 0;
    int64_t runs = max_pieces(share, max_segments);
    for (const TokenRange& range : own) {
      const int64_t halo = range.begin - halo_of(range);
      const int64_t far = std::min(sinks, halo_of(range) - start_of(range));
      rows += range.end - range.begin + halo + far;
      if (far > 0) ++runs;
    }
    int64_t returned = 0;
    for (const TokenRanges& other : tokens) {
      for (const TokenRange& range : other) {
        if (&other == &own) break;
        returned += overlap(own, halo_of(range), range.begin) +
                    std::min(sinks, overlap(own, start_of(range), halo_of(range)));
      }
    }
    bounds.rows = std::max(bounds.rows, std::min(rows, sequences_ * length_));
    bounds.runs = std::max(bounds.runs, runs);
    bounds.returned = std::max(bounds.returned, returned);
  }
  return bounds;
}

KeyBounds SequenceLayout::segment_bounds(Share share, int64_t max_segments) const {
  KeyBounds bounds{0, max_pieces(share, max_segments), 0};
  std::vector<TokenRanges> reach;  // whole sequences, up to the last token of the rank
  for (int rank = 0; rank < ranks(share); ++rank) {
    TokenRanges& tokens = reach.emplace_back();
    for (const TokenRange& range : share_tokens(share, rank)) {
      const int64_t origin = range.begin / length_ * length_;
      if (!tokens.empty() && tokens.back().begin == origin) tokens.pop_back();
      tokens.push_back({origin, range.end});
    }
    bounds.rows = std::max(bounds.rows, rows_of(tokens));
  }
  for (int rank = 0; rank < ranks(share); ++rank) {
    const TokenRanges own = share_tokens(share, rank);
    int64_t returned = 0;
    for (int other = 0; other < ranks(share); ++other) {
      if (other == rank) continue;
      for (const TokenRange& range : reach[static_cast<size_t>(other)]) {
        returned += overlap(own, range.begin, range.end);
      }
    }
    bounds.returned = std::max(bounds.returned, returned);
  }
  return bounds;
}

KeyBounds SequenceLayout::block_bounds(Share share, int64_t block, int64_t max_segments) const {
  return window_bounds(share, block, 0, max_segments);
}

}  // namespace tessera
