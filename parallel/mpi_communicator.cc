#include "parallel/mpi_communicator.h"

#include <mpi.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <numeric>
#include <vector>

#include "kernels/core/buffer.h"
#include "parallel/host_communicator.h"
#include "parallel/message_sizes.h"
#include "parallel/ordered_reduction.h"

// Short exchanges that block go through MPI_Allgather, which takes log2(ranks) steps, and every
// rank reduces all parts itself. All others are direct messages between all pairs, posted at the
// start: every rank receives the parts of its own slice and can add them in the order of the ranks.
// That moves as many bytes as a ring, but a ring would add in another order on every slice, and
// MPI_Allreduce in an order of its own choice.

#define MPI_CHECK(call) check(call, #call)

namespace tessera {

namespace {

// MPI counts are 32-bit.
constexpr int64_t kMessageBytes = 1 << 30;
// Every MPI has tags up to 32767. As many exchanges may be under way on one communicator.
constexpr int64_t kTags = 32767;

void check(int status, const char* call) {
  if (status == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(status, text.data(), &length);
  const std::string name(call, std::strcspn(call, "("));
  CHECK(false, name, ": ", std::string_view(text.data(), static_cast<size_t>(length)));
}

int rank_in(MPI_Comm comm) {
  int rank = 0;
  MPI_CHECK(MPI_Comm_rank(comm, &rank));
  return rank;
}

int size_of_group(MPI_Comm comm) {
  int size = 0;
  MPI_CHECK(MPI_Comm_size(comm, &size));
  return size;
}

/// What one message carries.
struct Message {
  int peer;
  int bytes;
  bool received;
};

/// An exchange between its start and its end. Everything in it grows to the largest exchange in
/// the first step and stays.
struct Flight {
  bool free = true;
  int tag = 0;
  Collective operation = Collective::kBarrier;
  ConstTensorView from;
  TensorView to;
  Reduction reduction = Reduction::kSum;
  int64_t unit = 1;   // bytes in which the message of an error counts
  int64_t begin = 0;  // of the chunk of a reduction, in elements
  std::vector<MPI_Request> requests;
  std::vector<Message> messages;
  std::vector<const void*> parts;
  Buffer scratch;
};

/// Elements of a tensor.
struct Slice {
  int64_t begin;
  int64_t count;
};

class MpiCommunicator final : public HostCommunicator {
 public:
  explicit MpiCommunicator(MPI_Comm world)
      : HostCommunicator(rank_in(world), size_of_group(world)), comm_(world), owned_(false) {
    MPI_CHECK(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN));
  }
  /// Frees `comm` on destruction.
  MpiCommunicator(MPI_Comm comm, const Communicator& parent, const std::string& name)
      : HostCommunicator(rank_in(comm), size_of_group(comm), parent, name),
        comm_(comm),
        owned_(true) {
    MPI_CHECK(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN));
  }
  ~MpiCommunicator() override {
    // Freeing is collective: after an error the others may never come.
    if (owned_ && std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
  }

 private:
  int host_start(const Call& call) override;
  void host_finish(int ticket) override;
  void host_broadcast(TensorView data, int root) override;
  void do_all_reduce_values(std::span<double> values) override;
  void do_barrier() override { MPI_CHECK(MPI_Barrier(comm_)); }
  std::unique_ptr<Communicator> do_split(std::span<const int> colors,
                                         const std::string& name) override;

  /// Does a short exchange at once. False: it is long, and nothing was done.
  bool run_short(const Call& call);
  /// All ranks' `bytes` bytes of `mine`, in order, in scratch memory. Short messages only.
  const char* gather_short(const void* mine, int64_t bytes);

  int take_flight();
  /// `bytes` bytes of `scratch`, which grows when it has less.
  char* take_scratch(Buffer& scratch, int64_t bytes);
  /// Messages of at most kMessageBytes; one of no bytes is sent too.
  void post_send(Flight& flight, int peer, const char* from, int64_t bytes);
  void post_receive(Flight& flight, int peer, char* to, int64_t bytes);
  void post_gather(Flight& flight);
  void post_all_to_all(Flight& flight, const Call& call);
  void post_rows(Flight& flight, const Call& call);
  void post_parts(Flight& flight);
  void post_sums(Flight& flight);
  /// Waits for all messages that are posted, and checks their lengths.
  void wait_all(Flight& flight);
  [[noreturn]] void refuse(const Flight& flight, const Message& message, int received) const;

  /// What rank r reduces in the chunk at flight.begin: elements of flight.from.
  Slice slice_of(const Flight& flight, int r) const;
  bool reduces_all(const Flight& flight) const {
    return flight.operation == Collective::kAllReduce && is_short(flight.to.bytes() * size());
  }
  /// Elements of flight.to in a full chunk.
  int64_t chunk_elements(const Flight& flight) const {
    const bool whole = flight.operation == Collective::kAllReduce;
    return chunk_bytes(size()) / (whole ? 1 : size()) / size_of(flight.to.dtype());
  }

  MPI_Comm comm_;
  bool owned_;
  std::vector<std::unique_ptr<Flight>> flights_;
  std::vector<MPI_Status> statuses_;
  std::vector<const void*> parts_;
  Buffer scratch_;
};

int MpiCommunicator::take_flight() {
  for (size_t i = 0; i < flights_.size(); ++i) {
    if (flights_[i]->free) return static_cast<int>(i);
  }
  flights_.push_back(std::make_unique<Flight>());
  return static_cast<int>(flights_.size()) - 1;
}

char* MpiCommunicator::take_scratch(Buffer& scratch, int64_t bytes) {
  if (scratch.bytes() < bytes) {
    log().add_scratch(bytes - scratch.bytes());
    scratch = Buffer(Device{}, bytes);
  }
  return static_cast<char*>(scratch.view(DType::kU8, {bytes}).data());
}

void MpiCommunicator::post_receive(Flight& flight, int peer, char* to, int64_t bytes) {
  for (int64_t at = 0; at == 0 || at < bytes; at += kMessageBytes) {
    const int count = static_cast<int>(std::min(kMessageBytes, bytes - at));
    flight.messages.push_back({peer, count, true});
    MPI_CHECK(MPI_Irecv(to + at, count, MPI_BYTE, peer, flight.tag, comm_,
                        &flight.requests.emplace_back(MPI_REQUEST_NULL)));
  }
}

void MpiCommunicator::post_send(Flight& flight, int peer, const char* from, int64_t bytes) {
  for (int64_t at = 0; at == 0 || at < bytes; at += kMessageBytes) {
    const int count = static_cast<int>(std::min(kMessageBytes, bytes - at));
    flight.messages.push_back({peer, count, false});
    MPI_CHECK(MPI_Isend(from + at, count, MPI_BYTE, peer, flight.tag, comm_,
                        &flight.requests.emplace_back(MPI_REQUEST_NULL)));
  }
}

void MpiCommunicator::refuse(const Flight& flight, const Message& message, int received) const {
  const char* unit = flight.unit == 1 ? " bytes" : " rows";
  const int64_t expected = message.bytes / flight.unit;
  if (received > message.bytes || received < 0) {
    CHECK(false, name_of(flight.operation), " on ", name(), ": rank ", message.peer,
          " sent more than the ", expected, unit, " that rank ", rank(), " expects");
  }
  CHECK(false, name_of(flight.operation), " on ", name(), ": rank ", message.peer, " sent ",
        received / flight.unit, unit, ", rank ", rank(), " expects ", expected);
  std::abort();  // CHECK has thrown
}

void MpiCommunicator::wait_all(Flight& flight) {
  statuses_.resize(flight.requests.size());
  const int count = static_cast<int>(flight.requests.size());
  const int status = MPI_Waitall(count, flight.requests.data(), statuses_.data());
  if (status != MPI_ERR_IN_STATUS) check(status, "MPI_Waitall");
  for (size_t i = 0; i < flight.messages.size(); ++i) {
    const Message& message = flight.messages[i];
    if (status == MPI_ERR_IN_STATUS) {
      int kind = MPI_SUCCESS;
      MPI_CHECK(MPI_Error_class(statuses_[i].MPI_ERROR, &kind));
      if (kind == MPI_ERR_TRUNCATE) refuse(flight, message, -1);
      check(statuses_[i].MPI_ERROR, "MPI_Waitall");
    }
    if (!message.received) continue;
    int received = -1;
    MPI_CHECK(MPI_Get_count(&statuses_[i], MPI_BYTE, &received));
    if (received != message.bytes) refuse(flight, message, received);
  }
  flight.requests.clear();
  flight.messages.clear();
}

void MpiCommunicator::post_gather(Flight& flight) {
  const int64_t bytes = flight.from.bytes();
  const char* own = static_cast<const char*>(flight.from.data());
  char* whole = static_cast<char*>(flight.to.data());
  // Every rank starts with its right neighbour, so that no rank is everybody's first.
  for (int step = 1; step < size() && bytes > 0; ++step) {
    const int peer = (rank() + step) % size();
    post_receive(flight, peer, whole + peer * bytes, bytes);
    post_send(flight, peer, own, bytes);
  }
  char* place = whole + rank() * bytes;
  if (bytes > 0 && place != own) std::memcpy(place, own, static_cast<size_t>(bytes));
}

void MpiCommunicator::post_all_to_all(Flight& flight, const Call& call) {
  flight.unit = row_bytes(call.from);
  const auto offset = [&](std::span<const int64_t> rows, int r) {
    return std::accumulate(rows.begin(), rows.begin() + r, int64_t{0}) * flight.unit;
  };
  const char* send = static_cast<const char*>(call.from.data());
  char* receive = static_cast<char*>(call.to.data());
  for (int step = 0; step < size(); ++step) {
    const int peer = (rank() + step) % size();
    const char* from = send + offset(call.send_rows, peer);
    char* to = receive + offset(call.receive_rows, peer);
    const int64_t sent = call.send_rows[static_cast<size_t>(peer)] * flight.unit;
    const int64_t received = call.receive_rows[static_cast<size_t>(peer)] * flight.unit;
    if (peer == rank()) {
      if (sent > 0) std::memcpy(to, from, static_cast<size_t>(sent));
      continue;
    }
    if (received > 0) post_receive(flight, peer, to, received);
    if (sent > 0) post_send(flight, peer, from, sent);
  }
}

void MpiCommunicator::post_rows(Flight& flight, const Call& call) {
  flight.unit = row_bytes(call.from);
  for (const RowTransfer& receive : call.receives) {
    if (receive.peer == rank()) continue;
    post_receive(flight, receive.peer,
                 static_cast<char*>(call.to.data()) + receive.first * flight.unit,
                 receive.rows * flight.unit);
  }
  for (const RowTransfer& send : call.sends) {
    if (send.peer == rank()) continue;
    post_send(flight, send.peer,
              static_cast<const char*>(call.from.data()) + send.first * flight.unit,
              send.rows * flight.unit);
  }
  copy_own_rows(call);
}

Slice MpiCommunicator::slice_of(const Flight& flight, int r) const {
  const int64_t elements = flight.to.elements();
  if (reduces_all(flight)) return {0, elements};
  const int64_t count = std::min(chunk_elements(flight), elements - flight.begin);
  if (flight.operation == Collective::kReduceScatter) return {r * elements + flight.begin, count};
  const int64_t first = slice_begin(count, r, size());
  return {flight.begin + first, slice_begin(count, r + 1, size()) - first};
}

/// Everybody's part of this rank's slice to scratch memory, and the other slices to their ranks.
void MpiCommunicator::post_parts(Flight& flight) {
  const int64_t width = size_of(flight.to.dtype());
  const char* from = static_cast<const char*>(flight.from.data());
  const Slice own = slice_of(flight, rank());
  const int64_t own_bytes = own.count * width;
  char* scratch = take_scratch(flight.scratch, own_bytes * size());
  flight.parts.resize(static_cast<size_t>(size()));
  flight.parts[static_cast<size_t>(rank())] = from + own.begin * width;
  for (int step = 1; step < size(); ++step) {
    const int peer = (rank() + step) % size();
    const Slice slice = slice_of(flight, peer);
    flight.parts[static_cast<size_t>(peer)] = scratch + peer * own_bytes;
    if (own_bytes > 0) post_receive(flight, peer, scratch + peer * own_bytes, own_bytes);
    if (slice.count > 0) post_send(flight, peer, from + slice.begin * width, slice.count * width);
  }
}

/// The sum of this rank's slice to everybody, and theirs to their places.
void MpiCommunicator::post_sums(Flight& flight) {
  const int64_t width = size_of(flight.to.dtype());
  char* data = static_cast<char*>(flight.to.data());
  const Slice own = slice_of(flight, rank());
  for (int step = 1; step < size(); ++step) {
    const int peer = (rank() + step) % size();
    const Slice slice = slice_of(flight, peer);
    if (slice.count > 0)
      post_receive(flight, peer, data + slice.begin * width, slice.count * width);
    if (own.count > 0) post_send(flight, peer, data + own.begin * width, own.count * width);
  }
}

const char* MpiCommunicator::gather_short(const void* mine, int64_t bytes) {
  char* all = take_scratch(scratch_, bytes * size());
  const int count = static_cast<int>(bytes);
  MPI_CHECK(MPI_Allgather(mine, count, MPI_BYTE, all, count, MPI_BYTE, comm_));
  return all;
}

bool MpiCommunicator::run_short(const Call& call) {
  if (call.operation == Collective::kAllReduce && is_short(call.to.bytes() * size())) {
    const int64_t bytes = call.to.bytes();
    const char* all = gather_short(call.from.data(), bytes);
    parts_.clear();
    for (int r = 0; r < size(); ++r) parts_.push_back(all + r * bytes);
    reduce_in_order(call.to.dtype(), call.reduction, parts_, call.to.elements(), call.to.data());
    return true;
  }
  if (call.operation != Collective::kAllGather || !is_short(call.to.bytes())) return false;
  const int count = static_cast<int>(call.from.bytes());
  const char* place = static_cast<const char*>(call.to.data()) + rank() * call.from.bytes();
  const void* part = call.from.data() == place ? MPI_IN_PLACE : call.from.data();
  MPI_CHECK(MPI_Allgather(part, count, MPI_BYTE, call.to.data(), count, MPI_BYTE, comm_));
  return true;
}

int MpiCommunicator::host_start(const Call& call) {
  if (call.blocking && run_short(call)) return kDone;
  const int ticket = take_flight();
  Flight& flight = *flights_[static_cast<size_t>(ticket)];
  flight.free = false;
  flight.tag = static_cast<int>(call.number % kTags);
  flight.operation = call.operation;
  flight.from = call.from;
  flight.to = call.to;
  flight.reduction = call.reduction;
  flight.unit = 1;
  flight.begin = 0;
  if (call.operation == Collective::kAllGather) {
    post_gather(flight);
  } else if (call.operation == Collective::kAllToAll) {
    post_all_to_all(flight, call);
  } else if (call.operation == Collective::kExchangeRows) {
    post_rows(flight, call);
  } else {
    post_parts(flight);
  }
  return ticket;
}

// After an error the flight stays taken: MPI may still write into its memory.
void MpiCommunicator::host_finish(int ticket) {
  Flight& flight = *flights_[static_cast<size_t>(ticket)];
  wait_all(flight);
  const bool all = flight.operation == Collective::kAllReduce;
  while (all || flight.operation == Collective::kReduceScatter) {
    const Slice own = slice_of(flight, rank());
    const int64_t out = all ? own.begin : flight.begin;
    reduce_in_order(flight.to.dtype(), flight.reduction, flight.parts, own.count,
                    static_cast<char*>(flight.to.data()) + out * size_of(flight.to.dtype()));
    if (all && !reduces_all(flight)) {
      post_sums(flight);
      wait_all(flight);
    }
    flight.begin += chunk_elements(flight);
    if (flight.begin >= flight.to.elements()) break;
    post_parts(flight);
    wait_all(flight);
  }
  flight.free = true;
}

void MpiCommunicator::host_broadcast(TensorView data, int root) {
  for (int64_t at = 0; at < data.bytes(); at += kMessageBytes) {
    const int bytes = static_cast<int>(std::min(kMessageBytes, data.bytes() - at));
    MPI_CHECK(MPI_Bcast(static_cast<char*>(data.data()) + at, bytes, MPI_BYTE, root, comm_));
  }
}

void MpiCommunicator::do_all_reduce_values(std::span<double> values) {
  const char* all = gather_short(values.data(), static_cast<int64_t>(values.size_bytes()));
  for (size_t i = 0; i < values.size(); ++i) {
    double sum = 0;
    for (int r = 0; r < size(); ++r) {
      double value = 0;
      std::memcpy(&value, all + r * values.size_bytes() + i * sizeof value, sizeof value);
      sum = r == 0 ? value : sum + value;
    }
    values[i] = sum;
  }
}

std::unique_ptr<Communicator> MpiCommunicator::do_split(std::span<const int> colors,
                                                        const std::string& name) {
  MPI_Comm part = MPI_COMM_NULL;
  MPI_CHECK(MPI_Comm_split(comm_, colors[static_cast<size_t>(rank())], rank(), &part));
  return std::make_unique<MpiCommunicator>(part, *this, name);
}

}  // namespace

void check_world_size(int world_size, const StartedRanks& started) {
  const bool mpirun = started.by_mpirun > 0;
  const int wanted = mpirun ? started.by_mpirun : started.by_srun;
  if (started.by_srun == 0 && started.by_sbatch > 0 && started.by_sbatch != world_size &&
      (wanted == 0 || wanted == world_size)) {
    throw Error(
        ExitCode::kUsage,
        concat("the Slurm job has ", started.by_sbatch, " tasks (SLURM_NTASKS), but MPI sees ",
               "a world of ", world_size, "; start it with mpirun -np ", started.by_sbatch,
               ", or unset SLURM_NTASKS if ", world_size, " is meant"));
  }
  if (wanted == 0 || wanted == world_size) return;
  const char* starter = mpirun ? "mpirun" : "srun";
  const char* remedy = mpirun ? "use the mpirun of the MPI library that tessera was built with"
                              : "use `srun --mpi=pmix`, or mpirun inside the job";
  throw Error(ExitCode::kUsage,
              concat(starter, " started ", wanted, " ranks, but MPI sees a world of ", world_size,
                     world_size == 1 ? ": every rank is alone; " : "; ", remedy));
}

MpiEnvironment::MpiEnvironment() {
  int initialised = 0;
  MPI_CHECK(MPI_Initialized(&initialised));
  CHECK(initialised == 0, "MPI is already initialised, expected one MpiEnvironment in a process");
  int provided = MPI_THREAD_SINGLE;
  MPI_CHECK(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided));
  CHECK(provided >= MPI_THREAD_FUNNELED, "MPI does not support threads (MPI_THREAD_FUNNELED)");
  world_ = std::make_unique<MpiCommunicator>(MPI_COMM_WORLD);
}

MpiEnvironment::~MpiEnvironment() {
  if (std::uncaught_exceptions() > 0) abort(static_cast<int>(ExitCode::kError));
  world_.reset();
  MPI_Finalize();
}

std::string MpiEnvironment::library() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_CHECK(MPI_Get_library_version(text.data(), &length));
  const std::string all(text.data(), static_cast<size_t>(length));
  return all.substr(0, all.find(','));
}

void MpiEnvironment::abort(int code) {
  MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

}  // namespace tessera
