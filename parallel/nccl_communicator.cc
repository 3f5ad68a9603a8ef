#include "parallel/nccl_communicator.h"

#include <nccl.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <thread>
#include <vector>

#include "kernels/core/buffer.h"
#include "kernels/core/event.h"
#include "kernels/core/log.h"
#include "parallel/message_sizes.h"
#include "parallel/ordered_reduction.h"

// Communicators are non-blocking: a call of NCCL may return before its work is on the stream, and
// is followed by settle(), which asks until it is. A rank that waits there for one that will never
// come can so be told, and give up.

#define NCCL_CHECK(call, ...) check(call, #call __VA_OPT__(, ) __VA_ARGS__)

namespace tessera {

namespace {

/// How long ranks wait for each other at the end of a communicator before they leave alone.
constexpr std::chrono::seconds kPatience{10};

class NcclCommunicator;

/// What all communicators that were split from one world share.
struct NcclWorld {
  Device device;
  int64_t chunk;  // bytes of a sum, or 0
  std::vector<NcclCommunicator*> members;
};

class NcclCommunicator final : public Communicator {
 public:
  /// The world.
  NcclCommunicator(Communicator& host, Device device, int64_t chunk);
  /// A part of `world`; `comm` is null for a rank alone. Both are owned from now on.
  NcclCommunicator(std::unique_ptr<Communicator> host, ncclComm_t comm,
                   std::shared_ptr<NcclWorld> world);
  ~NcclCommunicator() override;

 private:
  /// An exchange between its start and its wait.
  struct Flight {
    explicit Flight(Device device) : ended(device) {}
    bool free = true;
    Stream* stream = nullptr;  // the caller's
    Event ended;
  };

  /// A call inside of a group that NCCL did not take.
  struct Refused {
    ncclResult_t result = ncclSuccess;
    const char* call = "";
    int peer = -1;
  };

  int do_start(Stream& stream, const Call& call) override;
  void do_finish(int ticket) override;
  void do_broadcast(Stream& stream, TensorView data, int root) override;
  void do_all_reduce_values(std::span<double> values) override { values_of(*host_, values); }
  void do_barrier() override { barrier_of(*host_); }
  void do_check() override;
  std::unique_ptr<Communicator> do_split(std::span<const int> colors,
                                         const std::string& name) override;

  void put_on_stream(const Call& call);
  void sum_short(const Call& call);
  void sum_chunk(const Call& call, int64_t begin, int64_t count);
  void scatter_chunk(const Call& call, int64_t begin, int64_t count);
  void all_to_all_rows(const Call& call);
  void exchange_rows_of(const Call& call);

  /// What is sent and received in `post` is one piece of work of the stream.
  template <class Post>
  void together(Post post);
  void send(const void* from, int64_t bytes, int peer);
  void receive(void* to, int64_t bytes, int peer);
  /// Keeps the first one: nothing is thrown, or aborted, before the group ends.
  void note(const Refused& one) {
    const bool refused = one.result != ncclSuccess && one.result != ncclInProgress;
    if (refused && refused_.result == ncclSuccess) refused_ = one;
  }
  /// The sum of all parts of `count` elements: `parts` of others, own ones at `own`.
  void reduce(const Call& call, const char* parts, const void* own, int64_t count, void* out);

  /// Throws when `result` is an error. `call` begins with the name of NCCL's function.
  void check(ncclResult_t result, const char* call, int peer = -1);
  /// Waits until what NCCL was given last is on its stream.
  void settle(const char* call);
  [[noreturn]] void fail(ncclResult_t result, const char* call, int peer = -1);
  void abort() noexcept;
  /// Ends the communicator together with the other ranks, or alone if they do not come.
  void close();
  char* take_scratch(int64_t bytes);
  cudaStream_t handle() const { return static_cast<cudaStream_t>(own_.handle()); }

  std::unique_ptr<Communicator> owned_host_;
  Communicator* host_;
  std::shared_ptr<NcclWorld> world_;
  Stream own_;
  Event ready_;
  Event ended_;     // of a broadcast
  Buffer scratch_;  // used in the order of the stream, so by one exchange at a time
  std::vector<std::unique_ptr<Flight>> flights_;
  ncclComm_t comm_ = nullptr;
  bool aborted_ = false;
  Refused refused_;
};

NcclCommunicator::NcclCommunicator(Communicator& host, Device device, int64_t chunk)
    : Communicator(&host),
      host_(&host),
      world_(std::make_shared<NcclWorld>(NcclWorld{device, chunk, {}})),
      own_(device, 1, 0),
      ready_(device),
      ended_(device) {
  if (size() == 1) return;
  ncclUniqueId id{};
  if (rank() == 0) NCCL_CHECK(ncclGetUniqueId(&id));
  Stream stream{Device{}};
  host.broadcast(stream, {id.internal, DType::kU8, {NCCL_UNIQUE_ID_BYTES}, Device{}}, 0);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  NCCL_CHECK(ncclCommInitRankConfig(&comm_, size(), id, rank(), &config));
  settle("ncclCommInitRankConfig");
  world_->members.push_back(this);
}

NcclCommunicator::NcclCommunicator(std::unique_ptr<Communicator> host, ncclComm_t comm,
                                   std::shared_ptr<NcclWorld> world)
    : Communicator(host.get()),
      owned_host_(std::move(host)),
      host_(owned_host_.get()),
      world_(std::move(world)),
      own_(world_->device, 1, 0),
      ready_(world_->device),
      ended_(world_->device),
      comm_(comm) {
  if (comm_ == nullptr) return;
  settle("ncclCommSplit");
  world_->members.push_back(this);
}

NcclCommunicator::~NcclCommunicator() {
  std::erase(world_->members, this);
  if (comm_ == nullptr) return;
  // The end is collective: after an error the others may never come.
  std::uncaught_exceptions() > 0 ? abort() : close();
}

void NcclCommunicator::abort() noexcept {
  if (comm_ != nullptr) ncclCommAbort(comm_);
  comm_ = nullptr;
  aborted_ = true;
}

void NcclCommunicator::close() {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  ncclResult_t state = ncclCommFinalize(comm_);
  while (state == ncclSuccess || state == ncclInProgress) {
    if (ncclCommGetAsyncError(comm_, &state) == ncclSuccess && state == ncclSuccess) {
      ncclCommDestroy(comm_);
      comm_ = nullptr;
      return;
    }
    if (std::chrono::steady_clock::now() > deadline) break;
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  log_line(concat("NCCL communicator ", name(), " was left alone: ", ncclGetErrorString(state)));
  abort();
}

void NcclCommunicator::fail(ncclResult_t result, const char* call, int peer) {
  const std::string function(call, std::strcspn(call, "("));
  const std::string with = peer < 0 ? "" : concat(" with rank ", peer);
  const std::string words = ncclGetLastError(comm_);
  // Whoever waits for this rank on another communicator is told so as well.
  for (NcclCommunicator* member : world_->members) member->abort();
  abort();
  CHECK(false, function, " on ", name(), with, ": rank ", rank(), " of ", size(),
        " has an error: ", ncclGetErrorString(result), words.empty() ? "" : "; NCCL says: ", words);
  std::abort();  // CHECK has thrown
}

void NcclCommunicator::check(ncclResult_t result, const char* call, int peer) {
  if (result != ncclSuccess && result != ncclInProgress) fail(result, call, peer);
}

void NcclCommunicator::settle(const char* call) {
  for (int64_t looks = 0;; ++looks) {
    ncclResult_t state = ncclSuccess;
    NCCL_CHECK(ncclCommGetAsyncError(comm_, &state));
    if (state != ncclInProgress) return check(state, call);
    // As a rule it is done at once; connections take long.
    if (looks > 1000) std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

void NcclCommunicator::do_check() {
  for (NcclCommunicator* member : world_->members) {
    if (member->comm_ == nullptr) continue;
    ncclResult_t state = ncclSuccess;
    member->check(ncclCommGetAsyncError(member->comm_, &state), "ncclCommGetAsyncError");
    member->check(state, "an exchange");
  }
}

char* NcclCommunicator::take_scratch(int64_t bytes) {
  if (scratch_.bytes() < bytes) {
    own_.synchronize();
    log().add_scratch(bytes - scratch_.bytes());
    scratch_ = Buffer(world_->device, bytes);
  }
  return static_cast<char*>(scratch_.view(DType::kU8, {bytes}).data());
}

template <class Post>
void NcclCommunicator::together(Post post) {
  refused_ = {};
  NCCL_CHECK(ncclGroupStart());
  post();
  const ncclResult_t end = ncclGroupEnd();
  check(refused_.result, refused_.call, refused_.peer);
  check(end, "ncclGroupEnd");
  settle("ncclGroupEnd");
}

void NcclCommunicator::send(const void* from, int64_t bytes, int peer) {
  if (bytes == 0) return;  // the peer knows it
  note({ncclSend(from, static_cast<size_t>(bytes), ncclUint8, peer, comm_, handle()), "ncclSend",
        peer});
}

void NcclCommunicator::receive(void* to, int64_t bytes, int peer) {
  if (bytes == 0) return;
  note({ncclRecv(to, static_cast<size_t>(bytes), ncclUint8, peer, comm_, handle()), "ncclRecv",
        peer});
}

void NcclCommunicator::reduce(const Call& call, const char* parts, const void* own, int64_t count,
                              void* out) {
  gpu::reduce_in_order(own_, call.to.dtype(), call.reduction,
                       {.others = parts,
                        .stride = count * size_of(call.to.dtype()),
                        .own = own,
                        .rank = rank(),
                        .ranks = size()},
                       count, out);
}

void NcclCommunicator::sum_short(const Call& call) {
  const int64_t bytes = call.to.bytes();
  if (bytes == 0) return;
  char* const all = take_scratch(bytes * size());
  NCCL_CHECK(
      ncclAllGather(call.to.data(), all, static_cast<size_t>(bytes), ncclUint8, comm_, handle()));
  settle("ncclAllGather");
  reduce(call, all, all + rank() * bytes, call.to.elements(), call.to.data());
}

/// Everybody's part of this rank's slice to it, and the sum of that to everybody.
void NcclCommunicator::sum_chunk(const Call& call, int64_t begin, int64_t count) {
  const int64_t width = size_of(call.to.dtype());
  char* const data = static_cast<char*>(call.to.data()) + begin * width;
  const auto first = [&](int r) { return slice_begin(count, r, size()) * width; };
  const auto bytes = [&](int r) { return first(r + 1) - first(r); };
  char* const parts = take_scratch(bytes(rank()) * size());
  together([&] {
    for (int step = 1; step < size(); ++step) {
      const int peer = (rank() + step) % size();
      receive(parts + peer * bytes(rank()), bytes(rank()), peer);
      send(data + first(peer), bytes(peer), peer);
    }
  });
  char* const own = data + first(rank());
  reduce(call, parts, own, bytes(rank()) / width, own);
  together([&] {
    for (int step = 1; step < size(); ++step) {
      const int peer = (rank() + step) % size();
      receive(data + first(peer), bytes(peer), peer);
      send(own, bytes(rank()), peer);
    }
  });
}

/// Elements [begin, begin + count) of the part of every rank to it.
void NcclCommunicator::scatter_chunk(const Call& call, int64_t begin, int64_t count) {
  const int64_t width = size_of(call.to.dtype());
  const int64_t bytes = count * width;
  const char* const whole = static_cast<const char*>(call.from.data()) + begin * width;
  char* const parts = take_scratch(bytes * size());
  together([&] {
    for (int step = 1; step < size(); ++step) {
      const int peer = (rank() + step) % size();
      receive(parts + peer * bytes, bytes, peer);
      send(whole + peer * call.to.bytes(), bytes, peer);
    }
  });
  reduce(call, parts, whole + rank() * call.to.bytes(), count,
         static_cast<char*>(call.to.data()) + begin * width);
}

void NcclCommunicator::all_to_all_rows(const Call& call) {
  const int64_t unit = row_bytes(call.from);
  const char* from = static_cast<const char*>(call.from.data());
  char* to = static_cast<char*>(call.to.data());
  together([&] {
    for (int peer = 0; peer < size(); ++peer) {
      const int64_t sent = call.send_rows[static_cast<size_t>(peer)] * unit;
      const int64_t received = call.receive_rows[static_cast<size_t>(peer)] * unit;
      if (peer != rank()) {
        receive(to, received, peer);
        send(from, sent, peer);
      }
      from += sent;
      to += received;
    }
  });
  copy_own_rows(own_, call);
}

void NcclCommunicator::exchange_rows_of(const Call& call) {
  const int64_t unit = row_bytes(call.from);
  together([&] {
    for (const RowTransfer& transfer : call.receives) {
      if (transfer.peer == rank()) continue;
      receive(static_cast<char*>(call.to.data()) + transfer.first * unit, transfer.rows * unit,
              transfer.peer);
    }
    for (const RowTransfer& transfer : call.sends) {
      if (transfer.peer == rank()) continue;
      send(static_cast<const char*>(call.from.data()) + transfer.first * unit, transfer.rows * unit,
           transfer.peer);
    }
  });
  copy_own_rows(own_, call);
}

void NcclCommunicator::put_on_stream(const Call& call) {
  const int64_t elements = call.to.elements();
  const int64_t bytes = world_->chunk > 0 ? world_->chunk : chunk_bytes(size());
  const int64_t chunk = bytes / size_of(call.to.dtype());
  switch (call.operation) {
    case Collective::kAllReduce:
      if (is_short(call.to.bytes() * size())) return sum_short(call);
      for (int64_t begin = 0; begin < elements; begin += chunk) {
        sum_chunk(call, begin, std::min(chunk, elements - begin));
      }
      return;
    case Collective::kReduceScatter:
      for (int64_t begin = 0; begin < elements; begin += chunk / size()) {
        scatter_chunk(call, begin, std::min(chunk / size(), elements - begin));
      }
      return;
    case Collective::kAllGather:
      if (elements == 0) return;
      NCCL_CHECK(ncclAllGather(call.from.data(), call.to.data(),
                               static_cast<size_t>(call.from.bytes()), ncclUint8, comm_, handle()));
      return settle("ncclAllGather");
    case Collective::kAllToAll:
      return all_to_all_rows(call);
    default:
      return exchange_rows_of(call);
  }
}

// Tickets of exchanges on the host are even, those on the GPU odd.
int NcclCommunicator::do_start(Stream& stream, const Call& call) {
  if (!stream.on(DeviceKind::kGpu)) {
    const int ticket = start_of(*host_, stream, call);
    return ticket == kDone ? kDone : 2 * ticket;
  }
  CHECK(!aborted_, name_of(call.operation), " on ", name(),
        ": NCCL was aborted after an earlier error");
  const auto unused =
      std::find_if(flights_.begin(), flights_.end(), [](auto& f) { return f->free; });
  const auto index = static_cast<int>(unused - flights_.begin());
  if (unused == flights_.end()) flights_.push_back(std::make_unique<Flight>(world_->device));
  Flight& flight = *flights_[static_cast<size_t>(index)];
  flight.free = false;
  flight.stream = &stream;
  ready_.record(stream);
  ready_.hold(own_);
  log().begin_behind(call.record, own_);
  put_on_stream(call);
  log().end_behind(call.record, own_);
  flight.ended.record(own_);
  return 2 * index + 1;
}

void NcclCommunicator::do_finish(int ticket) {
  if (ticket % 2 == 0) return finish_of(*host_, ticket / 2);
  Flight& flight = *flights_[static_cast<size_t>(ticket / 2)];
  flight.ended.hold(*flight.stream);
  flight.free = true;
}

void NcclCommunicator::do_broadcast(Stream& stream, TensorView data, int root) {
  if (!stream.on(DeviceKind::kGpu)) return broadcast_of(*host_, stream, data, root);
  CHECK(!aborted_, "broadcast on ", name(), ": NCCL was aborted after an earlier error");
  if (data.bytes() == 0) return;
  ready_.record(stream);
  ready_.hold(own_);
  NCCL_CHECK(ncclBroadcast(data.data(), data.data(), static_cast<size_t>(data.bytes()), ncclUint8,
                           root, comm_, handle()));
  settle("ncclBroadcast");
  ended_.record(own_);
  ended_.hold(stream);
}

std::unique_ptr<Communicator> NcclCommunicator::do_split(std::span<const int> colors,
                                                         const std::string& name) {
  std::unique_ptr<Communicator> host = split_of(*host_, colors, name);
  CHECK(!aborted_, "split on ", this->name(), ": NCCL was aborted after an earlier error");
  ncclComm_t part = nullptr;
  if (comm_ != nullptr) {
    const int color = host->size() == 1 ? NCCL_SPLIT_NOCOLOR : colors[static_cast<size_t>(rank())];
    // Without a configuration of its own it has that of this one. NCCL sets `part` when this
    // communicator, not the new one, has done the split.
    NCCL_CHECK(ncclCommSplit(comm_, color, rank(), &part, nullptr));
    settle("ncclCommSplit");
  }
  return std::make_unique<NcclCommunicator>(std::move(host), part, world_);
}

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& host, Device device,
                                                     int64_t chunk) {
  CHECK(device.kind == DeviceKind::kGpu, "NCCL communicator: expected a GPU");
  return std::make_unique<NcclCommunicator>(host, device, chunk);
}

}  // namespace tessera
