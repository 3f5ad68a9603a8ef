#include "parallel/communicator.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <numeric>
#include <thread>
#include <utility>

#include "kernels/core/copy.h"
#include "kernels/core/event.h"
#include "kernels/core/log.h"
#include "parallel/message_sizes.h"
#include "parallel/subgroup.h"

namespace tessera {

namespace {

void check_place(const Stream& stream, const ConstTensorView& tensor, const char* who,
                 const char* what) {
  CHECK(tensor.shape().rank() > 0, who, ": ", what, " is no tensor, expected at least one axis");
  CHECK(tensor.device() == stream.device(), who, ": ", what, " ", tensor.shape(),
        " is not on the device of the stream");
}

void check_reducible(const ConstTensorView& tensor, const char* who) {
  const DType dtype = tensor.dtype();
  CHECK(
      dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kI32 || dtype == DType::kI64,
      who, ": dtype is ", name_of(dtype), ", expected f32, bf16, i32 or i64");
}

void check_parts(const ConstTensorView& whole, const ConstTensorView& part, int rank, int ranks,
                 const char* who) {
  CHECK(whole.dtype() == part.dtype(), who, ": part is ", name_of(part.dtype()),
        ", expected the dtype of whole, ", name_of(whole.dtype()));
  const Shape expected = part.shape().with(0, part.shape()[0] * ranks);
  CHECK(whole.shape() == expected, who, ": whole is ", whole.shape(), ", expected ", expected,
        ", which is ", ranks, " ranks times the part, ", part.shape());
  if (whole.bytes() == 0 || whole.data() == nullptr) return;
  const char* begin = static_cast<const char*>(whole.data());
  const char* own = static_cast<const char*>(part.data());
  const bool apart = own + part.bytes() <= begin || begin + whole.bytes() <= own;
  const int64_t rows = part.shape()[0];
  CHECK(apart || own == begin + rank * part.bytes(), who, ": part overlaps whole, but is not rows ",
        rank * rows, " to ", (rank + 1) * rows - 1, " of it, its own place");
}

void check_alike(const Stream& stream, const ConstTensorView& from, const char* from_name,
                 const ConstTensorView& to, const char* to_name, const char* who) {
  check_place(stream, from, who, from_name);
  check_place(stream, to, who, to_name);
  CHECK(from.dtype() == to.dtype(), who, ": ", to_name, " is ", name_of(to.dtype()),
        ", expected the dtype of ", from_name, ", ", name_of(from.dtype()));
  CHECK(from.shape().with(0, 1) == to.shape().with(0, 1), who, ": ", to_name, " is ", to.shape(),
        ", expected rows like those of ", from_name, ", ", from.shape());
}

void check_rows(std::span<const int64_t> rows, const ConstTensorView& tensor, int ranks,
                const char* what) {
  CHECK(static_cast<int64_t>(rows.size()) == ranks, "all_to_all: ", what, "_rows has ", rows.size(),
        " counts, expected one for each of ", ranks, " ranks");
  int64_t sum = 0;
  for (const int64_t count : rows) {
    CHECK(count >= 0, "all_to_all: ", what, "_rows has ", count, ", expected counts of at least 0");
    sum += count;
  }
  CHECK(sum <= tensor.shape()[0], "all_to_all: ", what, "_rows add up to ", sum, ", but ", what,
        " is ", tensor.shape());
}

void check_transfers(std::span<const RowTransfer> transfers, const ConstTensorView& tensor,
                     int ranks, const char* what) {
  for (const RowTransfer& transfer : transfers) {
    CHECK(transfer.peer >= 0 && transfer.peer < ranks, "exchange_rows: ", what, " has rank ",
          transfer.peer, ", expected 0 to ", ranks - 1);
    CHECK(transfer.first >= 0 && transfer.rows >= 0 &&
              transfer.first + transfer.rows <= tensor.shape()[0],
          "exchange_rows: ", what, " has ", transfer.rows, " rows from ", transfer.first,
          " on for ", "rank ", transfer.peer, ", which are not in the tensor, ", tensor.shape());
  }
}

/// The first transfer at or after `at` that is not with others, or the end.
size_t next_own(std::span<const RowTransfer> transfers, size_t at, int rank) {
  while (at < transfers.size() && transfers[at].peer != rank) ++at;
  return at;
}

/// Calls f(send, receive) for each pair of transfers of `rank` with itself.
template <class F>
void for_own_pairs(std::span<const RowTransfer> sends, std::span<const RowTransfer> receives,
                   int rank, F f) {
  size_t s = next_own(sends, 0, rank);
  size_t r = next_own(receives, 0, rank);
  while (s < sends.size() && r < receives.size()) {
    f(sends[s], receives[r]);
    s = next_own(sends, s + 1, rank);
    r = next_own(receives, r + 1, rank);
  }
  CHECK(s == sends.size() && r == receives.size(),
        "exchange_rows: this rank has not as many sends to itself as receives from itself");
}

int64_t rows_of_others(std::span<const int64_t> rows, int rank) {
  return std::accumulate(rows.begin(), rows.end(), int64_t{0}) - rows[static_cast<size_t>(rank)];
}

template <class Call>
Call at(const CallSite& where, Call call) {
  call.where = where;
  return call;
}

int64_t rows_of_others(std::span<const RowTransfer> transfers, int rank) {
  int64_t rows = 0;
  for (const RowTransfer& transfer : transfers) rows += transfer.peer == rank ? 0 : transfer.rows;
  return rows;
}

}  // namespace

int64_t row_bytes(const ConstTensorView& tensor) {
  return tensor.shape().with(0, 1).elements() * size_of(tensor.dtype());
}

Pending::Pending(Communicator& communicator, Stream& stream, int ticket, int64_t record)
    : communicator_(&communicator),
      stream_(&stream),
      ticket_(ticket),
      record_(record),
      exceptions_(std::uncaught_exceptions()) {}

Pending::Pending(Pending&& other) noexcept
    : communicator_(std::exchange(other.communicator_, nullptr)),
      stream_(other.stream_),
      ticket_(other.ticket_),
      record_(other.record_),
      exceptions_(other.exceptions_) {}

Pending& Pending::operator=(Pending&& other) {
  if (this == &other) return *this;
  wait();
  communicator_ = std::exchange(other.communicator_, nullptr);
  stream_ = other.stream_;
  ticket_ = other.ticket_;
  record_ = other.record_;
  exceptions_ = other.exceptions_;
  return *this;
}

Pending::~Pending() {
  if (!active() || std::uncaught_exceptions() > exceptions_) return;
  try {
    wait();
  } catch (const std::exception& e) {
    log_line(concat("an exchange that nobody waited for failed: ", e.what()));
  }
}

void Pending::wait() {
  if (!active()) return;
  Communicator& communicator = *std::exchange(communicator_, nullptr);
  const ExchangeWait blocked(communicator.log(), record_);
  communicator.do_finish(ticket_);
  communicator.let_go(*stream_, record_);
}

Communicator::Communicator(int rank, int size)
    : rank_(rank),
      size_(size),
      name_("world"),
      log_(std::make_shared<CollectiveLog>()),
      members_(static_cast<size_t>(size)),
      log_group_(log_->add(name_, 0, rank, size)) {
  std::iota(members_.begin(), members_.end(), 0);
}

Communicator::Communicator(int rank, int size, const Communicator& parent, const std::string& name)
    : rank_(rank), size_(size), name_(name), log_(parent.log_) {}

Communicator::Communicator(const Communicator* host)
    : rank_(host->rank_),
      size_(host->size_),
      name_(host->name_),
      log_(host->log_),
      members_(host->members_),
      log_group_(host->log_group_),
      calls_(host->calls_) {}

void Communicator::copy_own_rows(Stream& stream, const Call& call) const {
  if (call.operation == Collective::kAllToAll) {
    const auto first = [&](std::span<const int64_t> rows) {
      return std::accumulate(rows.begin(), rows.begin() + rank_, int64_t{0});
    };
    const int64_t rows = call.send_rows[static_cast<size_t>(rank_)];
    copy(stream, call.from.rows(first(call.send_rows), rows),
         call.to.rows(first(call.receive_rows), rows));
    return;
  }
  for_own_pairs(call.sends, call.receives, rank_, [&](const RowTransfer& s, const RowTransfer& r) {
    copy(stream, call.from.rows(s.first, s.rows), call.to.rows(r.first, r.rows));
  });
}

void Communicator::copy_alone(Stream& stream, const Call& call) const {
  if (call.operation == Collective::kAllToAll || call.operation == Collective::kExchangeRows) {
    copy_own_rows(stream, call);
  } else if (call.from.data() != call.to.data()) {
    copy(stream, call.from, call.to.reshape(call.from.shape()));
  }
}

int64_t Communicator::record(const Entry& entry, int64_t sent, int64_t received) {
  CollectiveRecord record;
  record.number = (*calls_)++;
  record.elements = entry.elements;
  record.sent = sent;
  record.received = received;
  record.operation = entry.operation;
  record.dtype = entry.dtype;
  record.line = entry.where.line;
  record.file = short_path(entry.where.file);
  return log_->start(log_group_, record);
}

int64_t Communicator::record(const Call& call) {
  int64_t sent = 0;
  int64_t received = 0;
  int64_t elements = call.from.elements();
  switch (call.operation) {
    case Collective::kAllReduce:
      sent = received =
          all_reduce_bytes(call.to.elements(), size_of(call.to.dtype()), rank_, size_);
      break;
    case Collective::kAllGather:
      sent = received = call.from.bytes() * (size_ - 1);
      break;
    case Collective::kReduceScatter:
      sent = received = call.to.bytes() * (size_ - 1);
      break;
    case Collective::kAllToAll:
      sent = rows_of_others(call.send_rows, rank_) * row_bytes(call.from);
      received = rows_of_others(call.receive_rows, rank_) * row_bytes(call.to);
      elements = call.from.shape().with(0, 1).elements();
      break;
    default:
      sent = rows_of_others(call.sends, rank_) * row_bytes(call.from);
      received = rows_of_others(call.receives, rank_) * row_bytes(call.to);
      elements = call.from.shape().with(0, 1).elements();
  }
  return record({call.operation, call.to.dtype(), elements, call.where}, sent, received);
}

Pending Communicator::start(Stream& stream, Call call) {
  if (!log_->proceed()) return {};
  call.number = *calls_;
  const int64_t index = call.record = record(call);
  const auto begin = [&] {
    if (size_ > 1) return stream.on(DeviceKind::kPlan) ? do_plan(call) : do_start(stream, call);
    copy_alone(stream, call);
    return kDone;
  };
  int ticket = kDone;
  if (call.blocking) {
    const ExchangeWait blocked(*log_, index);
    ticket = begin();
  } else {
    ticket = begin();
  }
  if (ticket != kDone) return Pending(*this, stream, ticket, index);
  let_go(stream, index);
  return {};
}

// A rank without company waits for nobody, and what it copies may become a part of a WorkGraph.
void Communicator::let_go(Stream& stream, int64_t index) {
  if (size_ == 1 || !stream.on(DeviceKind::kGpu)) return log_->complete(index);
  log_->end_behind(index, stream);
  log_->look_at_streams();
}

void Communicator::run(Stream& stream, Call call) {
  call.blocking = true;
  start(stream, call).wait();
}

Communicator::Call Communicator::reduce_call(const Stream& stream, TensorView data,
                                             Reduction reduction) const {
  check_place(stream, data, "all_reduce", "data");
  check_reducible(data, "all_reduce");
  return {.operation = Collective::kAllReduce, .from = data, .to = data, .reduction = reduction};
}

Communicator::Call Communicator::gather_call(const Stream& stream, ConstTensorView part,
                                             TensorView whole) const {
  check_place(stream, part, "all_gather", "part");
  check_place(stream, whole, "all_gather", "whole");
  check_parts(whole, part, rank_, size_, "all_gather");
  return {.operation = Collective::kAllGather, .from = part, .to = whole};
}

Communicator::Call Communicator::scatter_call(const Stream& stream, ConstTensorView whole,
                                              TensorView part) const {
  check_place(stream, whole, "reduce_scatter", "whole");
  check_place(stream, part, "reduce_scatter", "part");
  check_reducible(whole, "reduce_scatter");
  check_parts(whole, part, rank_, size_, "reduce_scatter");
  return {.operation = Collective::kReduceScatter, .from = whole, .to = part};
}

void Communicator::all_reduce(Stream& stream, TensorView data, Reduction reduction,
                              CallSite where) {
  run(stream, at(where, reduce_call(stream, data, reduction)));
}

Pending Communicator::start_all_reduce(Stream& stream, TensorView data, Reduction reduction,
                                       CallSite where) {
  return start(stream, at(where, reduce_call(stream, data, reduction)));
}

void Communicator::all_gather(Stream& stream, ConstTensorView part, TensorView whole,
                              CallSite where) {
  run(stream, at(where, gather_call(stream, part, whole)));
}

Pending Communicator::start_all_gather(Stream& stream, ConstTensorView part, TensorView whole,
                                       CallSite where) {
  return start(stream, at(where, gather_call(stream, part, whole)));
}

void Communicator::reduce_scatter(Stream& stream, ConstTensorView whole, TensorView part,
                                  CallSite where) {
  run(stream, at(where, scatter_call(stream, whole, part)));
}

Pending Communicator::start_reduce_scatter(Stream& stream, ConstTensorView whole, TensorView part,
                                           CallSite where) {
  return start(stream, at(where, scatter_call(stream, whole, part)));
}

void Communicator::all_to_all(Stream& stream, ConstTensorView send,
                              std::span<const int64_t> send_rows, TensorView receive,
                              std::span<const int64_t> receive_rows, CallSite where) {
  start_all_to_all(stream, send, send_rows, receive, receive_rows, where).wait();
}

Pending Communicator::start_all_to_all(Stream& stream, ConstTensorView send,
                                       std::span<const int64_t> send_rows, TensorView receive,
                                       std::span<const int64_t> receive_rows, CallSite where) {
  check_alike(stream, send, "send", receive, "receive", "all_to_all");
  check_rows(send_rows, send, size_, "send");
  check_rows(receive_rows, receive, size_, "receive");
  const size_t own = static_cast<size_t>(rank_);
  CHECK(send_rows[own] == receive_rows[own], "all_to_all: this rank sends itself ", send_rows[own],
        " rows and expects ", receive_rows[own]);
  return start(stream, {.operation = Collective::kAllToAll,
                        .from = send,
                        .to = receive,
                        .send_rows = send_rows,
                        .receive_rows = receive_rows,
                        .where = where});
}

void Communicator::exchange_rows(Stream& stream, ConstTensorView from,
                                 std::span<const RowTransfer> sends, TensorView to,
                                 std::span<const RowTransfer> receives, CallSite where) {
  start_exchange_rows(stream, from, sends, to, receives, where).wait();
}

Pending Communicator::start_exchange_rows(Stream& stream, ConstTensorView from,
                                          std::span<const RowTransfer> sends, TensorView to,
                                          std::span<const RowTransfer> receives, CallSite where) {
  check_alike(stream, from, "from", to, "to", "exchange_rows");
  check_transfers(sends, from, size_, "sends");
  check_transfers(receives, to, size_, "receives");
  for_own_pairs(sends, receives, rank_, [](const RowTransfer& s, const RowTransfer& r) {
    CHECK(s.rows == r.rows, "exchange_rows: this rank sends itself ", s.rows, " rows and expects ",
          r.rows);
  });
  return start(stream, {.operation = Collective::kExchangeRows,
                        .from = from,
                        .to = to,
                        .sends = sends,
                        .receives = receives,
                        .where = where});
}

void Communicator::broadcast(Stream& stream, TensorView data, int root, CallSite where) {
  check_place(stream, data, "broadcast", "data");
  CHECK(root >= 0 && root < size_, "broadcast: root is ", root, ", expected 0 to ", size_ - 1);
  // As if the root sent it to each: who passes it on is up to the implementation.
  const bool sender = rank_ == root;
  if (!log_->proceed()) return;
  const int64_t index = record({Collective::kBroadcast, data.dtype(), data.elements(), where},
                               sender ? data.bytes() * (size_ - 1) : 0, sender ? 0 : data.bytes());
  const ExchangeWait blocked(*log_, index);
  if (!stream.on(DeviceKind::kPlan) && size_ > 1) do_broadcast(stream, data, root);
  let_go(stream, index);
}

void Communicator::all_reduce_values(std::span<double> values, CallSite where) {
  const int64_t bytes = static_cast<int64_t>(values.size_bytes()) * (size_ - 1);
  if (!log_->proceed()) return;
  const int64_t elements = static_cast<int64_t>(values.size());
  const int64_t index =
      record({Collective::kAllReduceValues, DType::kU8, elements, where}, bytes, bytes);
  const ExchangeWait blocked(*log_, index);
  if (size_ > 1) do_all_reduce_values(values);
  log_->complete(index);
}

void Communicator::plan_values(int64_t values) {
  const int64_t bytes = values * static_cast<int64_t>(sizeof(double)) * (size_ - 1);
  log_->complete(record({Collective::kAllReduceValues, DType::kU8, values}, bytes, bytes));
  if (size_ > 1) do_plan_values(values);
}

void Communicator::barrier(CallSite where) {
  if (!log_->proceed()) return;
  const int64_t index = record({.operation = Collective::kBarrier, .where = where}, 0, 0);
  const ExchangeWait blocked(*log_, index);
  if (size_ > 1) do_barrier();
  log_->complete(index);
}

void Communicator::synchronize(Stream& stream) {
  if (stream.on(DeviceKind::kGpu)) {
    Event end(stream.device());
    end.record(stream);
    const StreamWait wait(*log_);
    for (int64_t looks = 0; !end.passed(); ++looks) {
      log_->look_at_streams();
      do_check();
      // Short waits are the rule; who waits long may lose a little.
      if (looks > 1000) std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
    log_->look_at_streams();
    do_check();
  }
  stream.synchronize();
}

std::unique_ptr<Communicator> Communicator::split(std::span<const int> colors,
                                                  const std::string& name, CallSite where) {
  CHECK(static_cast<int64_t>(colors.size()) == size_, "split: colors has ", colors.size(),
        " entries, expected one for each of ", size_, " ranks");
  const auto lowest = std::min_element(colors.begin(), colors.end());
  CHECK(*lowest >= 0, "split: a color is ", *lowest, ", expected at least 0");
  const int64_t index = record({.operation = Collective::kSplit, .where = where}, 0, 0);
  const ExchangeWait blocked(*log_, index);
  std::unique_ptr<Communicator> group = do_split(colors, name);
  for (const int member : Subgroup(colors, rank_).members) {
    group->members_.push_back(members_[static_cast<size_t>(member)]);
  }
  group->log_group_ = log_->add(name, group->members_.front(), group->rank_, group->size_);
  log_->complete(index);
  return group;
}

}  // namespace tessera
