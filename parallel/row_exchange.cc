#include "parallel/row_exchange.h"

#include <algorithm>

#include "kernels/elementwise.h"

namespace tessera {

namespace {

void check_ascending(const TokenRanges& ranges, int rank, const char* what) {
  int64_t end = 0;
  for (const TokenRange& range : ranges) {
    CHECK(range.begin >= end && range.end > range.begin, "row_exchange: the tokens that rank ",
          rank, " ", what, " have [", range.begin, ", ", range.end, ") after ", end,
          ", expected ascending ranges that are not empty");
    end = range.end;
  }
}

/// Adds a transfer, or lengthens the last one when both the tokens and the rows run on.
void add_transfer(std::vector<RowTransfer>& transfers, bool runs_on, const RowTransfer& transfer) {
  if (runs_on) {
    transfers.back().rows += transfer.rows;
  } else {
    transfers.push_back(transfer);
  }
}

}  // namespace

void RowExchange::find_owners(const std::vector<TokenRanges>& owned) {
  owners_.clear();
  for (size_t r = 0; r < owned.size(); ++r) {
    check_ascending(owned[r], static_cast<int>(r), "owns");
    int64_t row = 0;
    for (const TokenRange& range : owned[r]) {
      owners_.push_back({range, row, static_cast<int>(r)});
      row += range.end - range.begin;
    }
  }
  std::sort(owners_.begin(), owners_.end(),
            [](const Owner& a, const Owner& b) { return a.tokens.begin < b.tokens.begin; });
  for (size_t i = 1; i < owners_.size(); ++i) {
    CHECK(owners_[i - 1].tokens.end <= owners_[i].tokens.begin, "row_exchange: token ",
          owners_[i].tokens.begin, " is owned by ranks ", owners_[i - 1].peer, " and ",
          owners_[i].peer, ", expected one");
  }
}

/// Adds what rank `peer` needs of `rank`, and, when they are the same, what it needs of all.
/// Every rank finds the same pieces in the same order, so sends and receives match.
void RowExchange::plan_rank(int rank, int peer, const TokenRanges& needed) {
  check_ascending(needed, peer, "needs");
  int64_t row = 0;
  int64_t last_end = -1;
  int last_owner = -1;
  for (const TokenRange& range : needed) {
    auto owner =
        std::upper_bound(owners_.begin(), owners_.end(), range.begin,
                         [](int64_t token, const Owner& o) { return token < o.tokens.end; });
    for (int64_t at = range.begin; at < range.end; ++owner) {
      CHECK(owner != owners_.end() && owner->tokens.begin <= at, "row_exchange: token ", at,
            " is needed by rank ", peer, ", but no rank owns it");
      const int64_t end = std::min(range.end, owner->tokens.end);
      const bool runs_on = last_end == at && last_owner == owner->peer;
      const int64_t first = owner->row + at - owner->tokens.begin;
      if (owner->peer == rank) add_transfer(sends_, runs_on, {peer, first, end - at});
      if (peer == rank) add_transfer(receives_, runs_on, {owner->peer, row, end - at});
      row += end - at;
      last_owner = owner->peer;
      at = last_end = end;
    }
  }
}

void RowExchange::plan(int rank, const std::vector<TokenRanges>& owned,
                       const std::vector<TokenRanges>& needed) {
  CHECK(owned.size() == needed.size() && rank >= 0 && static_cast<size_t>(rank) < owned.size(),
        "row_exchange: rank ", rank, " plans with the owned tokens of ", owned.size(),
        " ranks and the needed tokens of ", needed.size());
  find_owners(owned);
  for (std::vector<RowTransfer>* transfers : {&sends_, &receives_, &giving_, &returned_}) {
    transfers->clear();
  }
  for (size_t r = 0; r < needed.size(); ++r) plan_rank(rank, static_cast<int>(r), needed[r]);
  for (const RowTransfer& receive : receives_) {
    if (receive.peer != rank) giving_.push_back(receive);
  }
  rows_returned_ = 0;
  for (const RowTransfer& send : sends_) {
    if (send.peer == rank) continue;
    returned_.push_back({send.peer, rows_returned_, send.rows});
    rows_returned_ += send.rows;
  }
  rank_ = rank;
  ranks_ = static_cast<int>(owned.size());
  rows_owned_ = rows_of(owned[static_cast<size_t>(rank)]);
  rows_needed_ = rows_of(needed[static_cast<size_t>(rank)]);
  // All that one rank needs it owns, so as many rows are the same rows.
  identity_ = ranks_ == 1 && rows_owned_ == rows_needed_;
}

void RowExchange::check_rows(const ConstTensorView& own, const ConstTensorView& needed,
                             int ranks) const {
  CHECK(ranks == ranks_, "row_exchange: planned for ", ranks_, " ranks, expected ", ranks);
  CHECK(own.shape().rank() > 0 && own.shape()[0] == rows_owned_, "row_exchange: own rows are ",
        own.shape(), ", expected ", rows_owned_, " rows");
  CHECK(needed.shape().rank() > 0 && needed.shape()[0] >= rows_needed_,
        "row_exchange: needed rows are ", needed.shape(), ", expected at least ", rows_needed_,
        " rows");
}

Pending RowExchange::start_fetch(Communicator& ranks, Stream& stream, ConstTensorView own,
                                 TensorView needed) const {
  check_rows(own, needed, ranks.size());
  return ranks.start_exchange_rows(stream, own, sends_, needed, receives_);
}

void RowExchange::fetch(Communicator& ranks, Stream& stream, ConstTensorView own,
                        TensorView needed) const {
  start_fetch(ranks, stream, own, needed).wait();
}

void RowExchange::give_back(Communicator& ranks, Stream& stream, Arena& arena,
                            ConstTensorView dneeded, TensorView down) const {
  check_rows(down, dneeded, ranks.size());
  const Arena::Scope scope(arena);
  const TensorView returned =
      arena.allocate(dneeded.dtype(), dneeded.shape().with(0, std::max(rows_returned_, reserved_)),
                     "row_exchange: returned rows");
  ranks.exchange_rows(stream, dneeded, giving_, returned, returned_);
  const bool in_place = down.dtype() == DType::kF32;
  const TensorView sum =
      in_place ? down : arena.allocate(DType::kF32, down.shape(), "row_exchange: sums");
  fill(stream, {.x = sum, .value = 0});
  auto own = receives_.begin();
  auto from = returned_.begin();
  for (const RowTransfer& send : sends_) {
    const bool mine = send.peer == rank_;
    if (mine) own = std::find_if(own, receives_.end(), [&](auto& r) { return r.peer == rank_; });
    const ConstTensorView part = mine ? dneeded.rows(own->first, own->rows)
                                      : ConstTensorView(returned.rows(from->first, from->rows));
    accumulate(stream, {.y = sum.rows(send.first, send.rows), .x = part});
    ++(mine ? own : from);
  }
  if (!in_place) cast(stream, {.y = down, .x = sum});
}

}  // namespace tessera
