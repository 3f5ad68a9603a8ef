#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/arena.h"
#include "parallel/communicator.h"
#include "parallel/token_ranges.h"

namespace tessera {

/// Gives every rank of a group the rows of the tokens that it needs, from the ranks that own them,
/// and gives back gradients of these rows: halos of a window, whole segments, pooling blocks.
///
/// Planned once for many exchanges; what it keeps grows to the largest plan and stays. Rows lie in
/// the order of the tokens, so nothing is packed: each message is a range of rows.
class RowExchange {
 public:
  /// `owned[r]` and `needed[r]` are the tokens whose rows rank r has and wants; every rank plans
  /// with the same. Throws when ranges do not ascend, when two ranks own a token, or when nobody
  /// owns a token that is needed.
  void plan(int rank, const std::vector<TokenRanges>& owned,
            const std::vector<TokenRanges>& needed);

  /// Makes give_back take scratch memory for at least this many returned rows, so that it takes the
  /// same memory for every plan: SequenceLayout knows bounds.
  void reserve_returned(int64_t rows) { reserved_ = rows; }

  int64_t rows_owned() const { return rows_owned_; }
  int64_t rows_needed() const { return rows_needed_; }
  /// Rows that other ranks give back.
  int64_t rows_returned() const { return rows_returned_; }
  /// One rank that needs what it owns: a fetch would be a copy.
  bool is_identity() const { return identity_; }

  /// needed = the rows of the tokens that this rank needs. own is [rows_owned(), ...]; needed is
  /// [at least rows_needed(), ...], and rows beyond these are not touched. Any dtype. No aliasing.
  /// `ranks` is the group that was planned.
  void fetch(Communicator& ranks, Stream& stream, ConstTensorView own, TensorView needed) const;
  Pending start_fetch(Communicator& ranks, Stream& stream, ConstTensorView own,
                      TensorView needed) const;

  /// Gradient of fetch: each row of down = the sum of dneeded of its token over all ranks, in the
  /// order of the ranks, added in f32 and rounded once; overwritten. Shapes as in fetch, f32 or
  /// bf16. Scratch memory, for rows_returned() rows or what was reserved
  /// and for sums in f32, comes from the arena.
  void give_back(Communicator& ranks, Stream& stream, Arena& arena, ConstTensorView dneeded,
                 TensorView down) const;

 private:
  // Tokens that rank `peer` owns, where they are in its rows.
  struct Owner {
    TokenRange tokens;
    int64_t row;
    int peer;
  };

  void find_owners(const std::vector<TokenRanges>& owned);
  void plan_rank(int rank, int peer, const TokenRanges& needed);
  void check_rows(const ConstTensorView& own, const ConstTensorView& needed, int ranks) const;

  std::vector<Owner> owners_;          // ascending in tokens
  std::vector<RowTransfer> sends_;     // own rows, by peer, then by token
  std::vector<RowTransfer> receives_;  // needed rows, by token
  // The way back, to and from others only; `returned_` are rows of scratch memory.
  std::vector<RowTransfer> giving_;
  std::vector<RowTransfer> returned_;
  int ranks_ = 0;
  int rank_ = 0;
  int64_t rows_owned_ = 0;
  int64_t rows_needed_ = 0;
  int64_t rows_returned_ = 0;
  int64_t reserved_ = 0;
  bool identity_ = false;
};

}  // namespace tessera
