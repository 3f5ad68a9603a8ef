#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/core/device.h"
#include "kernels/core/tensor_view.h"
#include "parallel/collective_log.h"

namespace tessera {

class Communicator;

enum class Reduction : uint8_t { kSum, kMax };

/// Rows [first, first + rows) of a tensor, which go to or come from rank `peer`.
struct RowTransfer {
  int peer;
  int64_t first;
  int64_t rows;

  friend bool operator==(const RowTransfer&, const RowTransfer&) = default;
};

/// An exchange that was started. Until wait() its inputs must not change, and its outputs hold
/// nothing. Move-only; the communicator and the stream must outlive it.
class [[nodiscard]] Pending {
 public:
  /// Nothing to wait for.
  Pending() = default;
  Pending(Pending&& other) noexcept;
  /// Waits for the exchange that it held.
  Pending& operator=(Pending&& other);
  /// Waits. An error is logged, not thrown. When an exception takes it away it does not wait, as
  /// the other ranks may never come: the exchange then stays unfinished.
  ~Pending();

  /// Ends the exchange on this rank: on a GPU, work that the stream is given from now on finds it
  /// ended. No effect when it has ended. Throws as the exchange itself.
  void wait();
  /// Whether there is something to wait for.
  bool active() const { return communicator_ != nullptr; }

 private:
  friend class Communicator;
  Pending(Communicator& communicator, Stream& stream, int ticket, int64_t record);

  Communicator* communicator_ = nullptr;
  Stream* stream_ = nullptr;
  int ticket_ = -1;
  int64_t record_ = -1;
  int exceptions_ = 0;  // in flight when it was made
};

/// A group of ranks that exchange tensors.
///
/// Every rank of the group makes the same calls in the same order. Work is done on `stream`, which
/// is on the device of the tensors; on kPlan only the shapes and dtypes are checked, and the bytes
/// and the scratch memory of what is under way counted. Sums are taken in the order of the ranks,
/// 0 + 1 + 2 + ...: the result has the same bits on every rank, in every repetition, in every
/// implementation, and blocking or not. A NaN on one rank is a NaN in the sum and in the maximum.
/// Throws Error when a shape, dtype or count is wrong, or when another rank has failed.
///
/// On a GPU an exchange is one more piece of work of the stream: it comes after what the stream was
/// given before, and the host may go on before it has ended. The log calls an exchange complete
/// when the GPU has passed its end, which it looks for in every call and in synchronize(). None may
/// be a part of a WorkGraph, but those of a rank without company: these are copies, and complete at
/// once.
///
/// The log says where each exchange was called, `where`, which nobody has to pass.
///
/// start_x does the same as x, but returns at once; Pending::wait ends it. Several exchanges may be
/// under way, on one communicator and on different ones, and others may be done in between. All
/// ranks start them in the same order, and wait for them in the same order, which need not be that
/// of the starts. Counts and transfers are copied; tensors must live until the wait, and on a GPU
/// until the stream is past it.
class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  /// "world", or the name that it got from split.
  const std::string& name() const { return name_; }
  /// What this rank has exchanged: one log for the world and all that was split from it.
  CollectiveLog& log() const { return *log_; }

  /// data = reduction of `data` over all ranks, in place. f32, bf16 (summed in f32, rounded once),
  /// i32 or i64; the same shape on every rank.
  void all_reduce(Stream& stream, TensorView data, Reduction reduction,
                  CallSite where = CallSite::current());
  Pending start_all_reduce(Stream& stream, TensorView data, Reduction reduction,
                           CallSite where = CallSite::current());

  /// whole = `part` of rank 0, 1, ..., concatenated along the outermost axis; overwritten.
  /// Any dtype; whole is [size * p, ...] for a part [p, ...]. `part` may be its own place in whole,
  /// rows [rank * p, (rank + 1) * p); no other aliasing.
  void all_gather(Stream& stream, ConstTensorView part, TensorView whole,
                  CallSite where = CallSite::current());
  Pending start_all_gather(Stream& stream, ConstTensorView part, TensorView whole,
                           CallSite where = CallSite::current());

  /// part = rows [rank * p, (rank + 1) * p) of the sum of `whole` over all ranks; overwritten.
  /// Dtypes as all_reduce; whole is [size * p, ...] for a part [p, ...]. `part` may be these rows
  /// of `whole`, whose other rows stay as they are; no other aliasing.
  void reduce_scatter(Stream& stream, ConstTensorView whole, TensorView part,
                      CallSite where = CallSite::current());
  Pending start_reduce_scatter(Stream& stream, ConstTensorView whole, TensorView part,
                               CallSite where = CallSite::current());

  /// Sends `send_rows[r]` rows of `send` to rank r, and receives `receive_rows[r]` rows from it;
  /// both are packed in the order of the ranks. Any dtype; rows are indices of the outermost axis
  /// and may be none. Rows of `receive` beyond the sum of `receive_rows` are not touched.
  /// `receive_rows[r]` must be what rank r sends to this rank. No aliasing.
  void all_to_all(Stream& stream, ConstTensorView send, std::span<const int64_t> send_rows,
                  TensorView receive, std::span<const int64_t> receive_rows,
                  CallSite where = CallSite::current());
  Pending start_all_to_all(Stream& stream, ConstTensorView send, std::span<const int64_t> send_rows,
                           TensorView receive, std::span<const int64_t> receive_rows,
                           CallSite where = CallSite::current());

  /// Rows of `from` go to rows of `to` on other ranks and on this one, without packing. The i-th of
  /// the `sends` to rank r is the i-th of the `receives` of rank r that names this rank, and has as
  /// many rows; none is a number too. Any dtype. Rows may be sent several times, but received rows
  /// do not overlap; rows of `to` that nobody sends are not touched. No aliasing.
  void exchange_rows(Stream& stream, ConstTensorView from, std::span<const RowTransfer> sends,
                     TensorView to, std::span<const RowTransfer> receives,
                     CallSite where = CallSite::current());
  Pending start_exchange_rows(Stream& stream, ConstTensorView from,
                              std::span<const RowTransfer> sends, TensorView to,
                              std::span<const RowTransfer> receives,
                              CallSite where = CallSite::current());

  /// data = `data` of rank `root`. Any dtype.
  void broadcast(Stream& stream, TensorView data, int root, CallSite where = CallSite::current());
  /// Sums each host value over all ranks, in place: for losses, metrics and stop signals, in one
  /// short message. Does work on every device; use it outside plans.
  void all_reduce_values(std::span<double> values, CallSite where = CallSite::current());
  /// On a plan, instead of all_reduce_values of `values` numbers: counts it.
  void plan_values(int64_t values);
  /// Blocks the host until every rank has called it.
  void barrier(CallSite where = CallSite::current());
  /// The host waits for the stream, as Stream::synchronize. On a GPU it sees meanwhile which
  /// exchanges begin and end there, for the log, and throws when one of them fails.
  void synchronize(Stream& stream);
  /// New groups of the ranks with equal colors, ordered by their rank here. `colors` has one color
  /// for each rank of this group and is the same on every rank (so a plan, which has only one
  /// rank, can split too). `name` is for messages and for the log. This group must outlive the new
  /// ones.
  std::unique_ptr<Communicator> split(std::span<const int> colors, const std::string& name,
                                      CallSite where = CallSite::current());

 protected:
  /// An exchange that can be started: its arguments, checked. Fields that it has no use for are
  /// empty. Spans live only as long as the call.
  struct Call {
    Collective operation;
    ConstTensorView from;  // data, part, whole, send
    TensorView to;         // data, whole, part, receive
    Reduction reduction = Reduction::kSum;
    std::span<const int64_t> send_rows = {};
    std::span<const int64_t> receive_rows = {};
    std::span<const RowTransfer> sends = {};
    std::span<const RowTransfer> receives = {};
    CallSite where = {};
    int64_t number = 0;     // of this exchange on this communicator
    int64_t record = -1;    // of this exchange in the log
    bool blocking = false;  // whether the wait follows at once
  };

  /// The ticket of an exchange that has ended when do_start returns.
  static constexpr int kDone = -1;

  /// The world.
  Communicator(int rank, int size);
  /// A group of ranks of `parent`.
  Communicator(int rank, int size, const Communicator& parent, const std::string& name);

  /// In the place of `host`, of the same ranks, which does what this one leaves to it. Both have
  /// one log, name and count of exchanges; from now on `host` is called only through x_of.
  explicit Communicator(const Communicator* host);

  /// Copies what a call of all_to_all or exchange_rows sends to this rank itself.
  void copy_own_rows(Stream& stream, const Call& call) const;

  // What another implementation does, without checks and records.
  static int start_of(Communicator& host, Stream& stream, const Call& call) {
    return host.do_start(stream, call);
  }
  static void finish_of(Communicator& host, int ticket) { host.do_finish(ticket); }
  static void broadcast_of(Communicator& host, Stream& stream, TensorView data, int root) {
    host.do_broadcast(stream, data, root);
  }
  static void values_of(Communicator& host, std::span<double> values) {
    host.do_all_reduce_values(values);
  }
  static void barrier_of(Communicator& host) { host.do_barrier(); }
  static std::unique_ptr<Communicator> split_of(Communicator& host, std::span<const int> colors,
                                                const std::string& name) {
    return host.do_split(colors, name);
  }

 private:
  friend class Pending;

  // Called with checked arguments, never on kPlan, only when there are several ranks. Ranks agree
  // on everything but counts and transfers.
  /// Returns kDone, or a ticket for one call of do_finish.
  virtual int do_start(Stream& stream, const Call& call) = 0;
  virtual void do_finish(int ticket) = 0;
  /// In place of do_start on kPlan: counts the scratch memory of the exchange.
  virtual int do_plan(const Call&) { return kDone; }
  virtual void do_plan_values(int64_t) {}
  virtual void do_broadcast(Stream& stream, TensorView data, int root) = 0;
  virtual void do_all_reduce_values(std::span<double> values) = 0;
  virtual void do_barrier() = 0;
  /// Throws when an exchange of this communicator, or of one that has the same log, has failed.
  virtual void do_check() {}
  virtual std::unique_ptr<Communicator> do_split(std::span<const int> colors,
                                                 const std::string& name) = 0;

  Call reduce_call(const Stream& stream, TensorView data, Reduction reduction) const;
  Call gather_call(const Stream& stream, ConstTensorView part, TensorView whole) const;
  Call scatter_call(const Stream& stream, ConstTensorView whole, TensorView part) const;
  /// What an exchange of a rank alone is.
  void copy_alone(Stream& stream, const Call& call) const;
  Pending start(Stream& stream, Call call);
  /// The host has no more to do with the exchange.
  void let_go(Stream& stream, int64_t record);
  void run(Stream& stream, Call call);
  /// What is recorded of an exchange, besides its bytes.
  struct Entry {
    Collective operation;
    DType dtype = DType::kU8;
    int64_t elements = 0;
    CallSite where = {};
  };
  int64_t record(const Entry& entry, int64_t sent, int64_t received);
  int64_t record(const Call& call);

  int rank_;
  int size_;
  std::string name_;
  std::shared_ptr<CollectiveLog> log_;
  std::vector<int> members_;  ///< their ranks in the world
  CollectiveLog::Group log_group_;
  std::shared_ptr<int64_t> calls_ = std::make_shared<int64_t>(0);
};

/// Bytes of one row of a tensor: an index of its outermost axis.
int64_t row_bytes(const ConstTensorView& tensor);

}  // namespace tessera
