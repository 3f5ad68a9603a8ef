#include "parallel/mpi_communicator.h"

#include <mpi.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <vector>

#include "kernels/core/buffer.h"
#include "parallel/ordered_reduction.h"
#include "parallel/subgroup.h"

// Two kinds of exchange: short ones go through MPI_Allgather, which takes log2(ranks) steps, and
// every rank reduces all parts itself; long ones are direct messages between all pairs, so that
// every rank receives the parts of its own slice and can add them in the order of the ranks. That
// moves as many bytes as a ring, but a ring would add in another order on every slice, and
// MPI_Allreduce in an order of its own choice.

#define MPI_CHECK(call) check(call, #call)

namespace tessera {

namespace {

// Below this many bytes on all ranks together, one step of latency costs more than the bytes.
constexpr int64_t kShortBytes = 64 << 10;
// Long reductions go in chunks, so that the scratch memory is bounded: a chunk has at least
// kChunkBytes, and at least kSliceBytes for each rank. Ranks wait for each other twice in a chunk:
// on 2 busy cores, 2 ranks spent 75 ms of processor time on 128 MiB with chunks of 16 MiB, 230 ms
// with 4 MiB and 70 ms with 64 MiB.
constexpr int64_t kChunkBytes = 16 << 20;
constexpr int64_t kSliceBytes = 64 << 10;
// MPI counts are 32-bit.
constexpr int64_t kMessageBytes = 1 << 30;
constexpr int kTag = 1;

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

int64_t row_bytes(const ConstTensorView& tensor) {
  return tensor.shape().with(0, 1).elements() * size_of(tensor.dtype());
}

class MpiCommunicator final : public Communicator {
 public:
  /// Frees `comm` on destruction when it is `owned`.
  MpiCommunicator(MPI_Comm comm, bool owned)
      : Communicator(rank_in(comm), size_of_group(comm)),
        comm_(comm),
        owned_(owned),
        send_(static_cast<size_t>(size())),
        receive_(static_cast<size_t>(size())),
        parts_(static_cast<size_t>(size())) {
    MPI_CHECK(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN));
  }
  ~MpiCommunicator() override {
    // Freeing is collective: after an error the others may never come.
    if (owned_ && std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
  }

 private:
  struct ConstBytes {
    const char* data = nullptr;
    int64_t bytes = 0;
  };
  struct Bytes {
    char* data = nullptr;
    int64_t bytes = 0;
  };

  void do_all_reduce(Stream& stream, TensorView data, Reduction reduction) override;
  void do_all_gather(Stream& stream, ConstTensorView part, TensorView whole) override;
  void do_reduce_scatter(Stream& stream, ConstTensorView whole, TensorView part) override;
  void do_all_to_all(Stream& stream, ConstTensorView send, std::span<const int64_t> send_rows,
                     TensorView receive, std::span<const int64_t> receive_rows) override;
  void do_broadcast(Stream& stream, TensorView data, int root) override;
  void do_all_reduce_values(std::span<double> values) override;
  void do_barrier() override { MPI_CHECK(MPI_Barrier(comm_)); }
  std::unique_ptr<Communicator> do_split(std::span<const int> colors) override;

  /// Sends send_[r] to rank r and receives receive_[r] from it, for all ranks at once.
  void exchange();
  void post(int peer);
  /// All ranks' `bytes` bytes of `mine`, in order, in scratch memory. Short messages only.
  const char* gather_short(const void* mine, int64_t bytes);
  char* scratch(int64_t bytes);
  int64_t chunk_bytes() const { return std::max(kChunkBytes, size() * kSliceBytes); }
  void check_host(const Stream& stream) const {
    CHECK(stream.on(DeviceKind::kCpu), "MPI communicator: the tensors are not in host memory");
  }

  MPI_Comm comm_;
  bool owned_;
  // All of these grow to the largest exchange in the first step and stay.
  std::vector<ConstBytes> send_;
  std::vector<Bytes> receive_;
  std::vector<const void*> parts_;
  std::vector<MPI_Request> requests_;
  std::vector<MPI_Status> statuses_;
  std::vector<int> expected_bytes_;
  Buffer scratch_;
};

char* MpiCommunicator::scratch(int64_t bytes) {
  if (scratch_.bytes() < bytes) scratch_ = Buffer(Device{}, bytes);
  return static_cast<char*>(scratch_.view(DType::kU8, {bytes}).data());
}

void MpiCommunicator::post(int peer) {
  const ConstBytes send = send_[static_cast<size_t>(peer)];
  const Bytes receive = receive_[static_cast<size_t>(peer)];
  for (int64_t at = 0; at < receive.bytes; at += kMessageBytes) {
    const int bytes = static_cast<int>(std::min(kMessageBytes, receive.bytes - at));
    expected_bytes_.push_back(bytes);
    MPI_CHECK(MPI_Irecv(receive.data + at, bytes, MPI_BYTE, peer, kTag, comm_,
                        &requests_.emplace_back(MPI_REQUEST_NULL)));
  }
  for (int64_t at = 0; at < send.bytes; at += kMessageBytes) {
    const int bytes = static_cast<int>(std::min(kMessageBytes, send.bytes - at));
    expected_bytes_.push_back(-1);
    MPI_CHECK(MPI_Isend(send.data + at, bytes, MPI_BYTE, peer, kTag, comm_,
                        &requests_.emplace_back(MPI_REQUEST_NULL)));
  }
}

void MpiCommunicator::exchange() {
  requests_.clear();
  expected_bytes_.clear();
  // Every rank starts with its right neighbour, so that no rank is everybody's first.
  for (int step = 1; step < size(); ++step) post((rank() + step) % size());
  statuses_.resize(requests_.size());
  const int status =
      MPI_Waitall(static_cast<int>(requests_.size()), requests_.data(), statuses_.data());
  if (status != MPI_ERR_IN_STATUS) check(status, "MPI_Waitall");
  for (size_t i = 0; i < requests_.size(); ++i) {
    if (status == MPI_ERR_IN_STATUS) check(statuses_[i].MPI_ERROR, "MPI_Waitall");
    int received = -1;
    if (expected_bytes_[i] < 0) continue;
    MPI_CHECK(MPI_Get_count(&statuses_[i], MPI_BYTE, &received));
    CHECK(received == expected_bytes_[i], "exchange: rank ", statuses_[i].MPI_SOURCE, " sent ",
          received, " bytes, expected ", expected_bytes_[i]);
  }
  const Bytes own = receive_[static_cast<size_t>(rank())];
  const char* from = send_[static_cast<size_t>(rank())].data;
  if (own.bytes > 0 && own.data != from) {
    std::memcpy(own.data, from, static_cast<size_t>(own.bytes));
  }
}

const char* MpiCommunicator::gather_short(const void* mine, int64_t bytes) {
  char* all = scratch(bytes * size());
  const int count = static_cast<int>(bytes);
  MPI_CHECK(MPI_Allgather(mine, count, MPI_BYTE, all, count, MPI_BYTE, comm_));
  return all;
}

void MpiCommunicator::do_all_reduce(Stream& stream, TensorView data, Reduction reduction) {
  check_host(stream);
  const int64_t width = size_of(data.dtype());
  if (data.bytes() * size() <= kShortBytes) {
    const char* all = gather_short(data.data(), data.bytes());
    for (int r = 0; r < size(); ++r) parts_[static_cast<size_t>(r)] = all + r * data.bytes();
    return reduce_in_order(data.dtype(), reduction, parts_, data.elements(), data.data());
  }
  const int64_t chunk = chunk_bytes() / width;
  for (int64_t begin = 0; begin < data.elements(); begin += chunk) {
    const int64_t count = std::min(chunk, data.elements() - begin);
    char* base = static_cast<char*>(data.data()) + begin * width;
    const auto slice = [&](int r) { return count * r / size() * width; };
    const int64_t own_bytes = slice(rank() + 1) - slice(rank());
    char* own = base + slice(rank());
    char* received = scratch(own_bytes * size());
    for (int r = 0; r < size(); ++r) {
      const size_t i = static_cast<size_t>(r);
      send_[i] = {base + slice(r), slice(r + 1) - slice(r)};
      receive_[i] = {r == rank() ? own : received + r * own_bytes, own_bytes};
      parts_[i] = receive_[i].data;
    }
    exchange();
    reduce_in_order(data.dtype(), reduction, parts_, own_bytes / width, own);
    for (int r = 0; r < size(); ++r) {
      send_[static_cast<size_t>(r)] = {own, own_bytes};
      receive_[static_cast<size_t>(r)] = {base + slice(r), slice(r + 1) - slice(r)};
    }
    exchange();
  }
}

void MpiCommunicator::do_all_gather(Stream& stream, ConstTensorView part, TensorView whole) {
  check_host(stream);
  if (whole.bytes() <= kShortBytes) {
    const int count = static_cast<int>(part.bytes());
    return MPI_CHECK(
        MPI_Allgather(part.data(), count, MPI_BYTE, whole.data(), count, MPI_BYTE, comm_));
  }
  for (int r = 0; r < size(); ++r) {
    send_[static_cast<size_t>(r)] = {static_cast<const char*>(part.data()), part.bytes()};
    receive_[static_cast<size_t>(r)] = {static_cast<char*>(whole.data()) + r * part.bytes(),
                                        part.bytes()};
  }
  exchange();
}

void MpiCommunicator::do_reduce_scatter(Stream& stream, ConstTensorView whole, TensorView part) {
  check_host(stream);
  const int64_t width = size_of(part.dtype());
  const int64_t chunk = chunk_bytes() / size() / width;
  for (int64_t begin = 0; begin < part.elements(); begin += chunk) {
    const int64_t bytes = std::min(chunk, part.elements() - begin) * width;
    char* received = scratch(bytes * size());
    for (int r = 0; r < size(); ++r) {
      const size_t i = static_cast<size_t>(r);
      send_[i] = {static_cast<const char*>(whole.data()) + r * part.bytes() + begin * width, bytes};
      receive_[i] = {received + r * bytes, bytes};
      parts_[i] = receive_[i].data;
    }
    exchange();
    reduce_in_order(part.dtype(), Reduction::kSum, parts_, bytes / width,
                    static_cast<char*>(part.data()) + begin * width);
  }
}

void MpiCommunicator::do_all_to_all(Stream& stream, ConstTensorView send,
                                    std::span<const int64_t> send_rows, TensorView receive,
                                    std::span<const int64_t> receive_rows) {
  check_host(stream);
  const int64_t width = row_bytes(send);
  const char* from = static_cast<const char*>(send.data());
  char* to = static_cast<char*>(receive.data());
  for (size_t r = 0; r < send_.size(); ++r) {
    send_[r] = {from, send_rows[r] * width};
    receive_[r] = {to, receive_rows[r] * width};
    from += send_[r].bytes;
    to += receive_[r].bytes;
  }
  exchange();
}

void MpiCommunicator::do_broadcast(Stream& stream, TensorView data, int root) {
  check_host(stream);
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

std::unique_ptr<Communicator> MpiCommunicator::do_split(std::span<const int> colors) {
  MPI_Comm part = MPI_COMM_NULL;
  MPI_CHECK(MPI_Comm_split(comm_, colors[static_cast<size_t>(rank())], rank(), &part));
  return std::make_unique<MpiCommunicator>(part, true);
}

}  // namespace

void check_world_size(int world_size, const StartedRanks& started) {
  const bool mpirun = started.by_mpirun > 0;
  const int wanted = mpirun ? started.by_mpirun : started.by_srun;
  if (wanted == 0 || wanted == world_size) return;
  const char* starter = mpirun ? "mpirun" : "srun";
  const char* remedy = mpirun ? "use the mpirun of the MPI library that tessera was built with"
                              : "use `srun --mpi=pmix`, or mpirun inside the job";
  throw Error(ExitCode::kUsage,
              concat(starter, " started ", wanted, " ranks, but MPI sees a world of ", world_size,
                     world_size == 1 ? ": every rank is alone; " : "; ", remedy));
}

MpiEnvironment::MpiEnvironment(const StartedRanks& started) {
  int initialised = 0;
  MPI_CHECK(MPI_Initialized(&initialised));
  CHECK(initialised == 0, "MPI is already initialised, expected one MpiEnvironment in a process");
  int provided = MPI_THREAD_SINGLE;
  MPI_CHECK(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided));
  CHECK(provided >= MPI_THREAD_FUNNELED, "MPI does not support threads (MPI_THREAD_FUNNELED)");
  world_ = std::make_unique<MpiCommunicator>(MPI_COMM_WORLD, false);
  check_world_size(world_->size(), started);
}

MpiEnvironment::~MpiEnvironment() {
  if (std::uncaught_exceptions() > 0) abort(static_cast<int>(ExitCode::kError));
  world_.reset();
  MPI_Finalize();
}

std::string MpiEnvironment::library() const {
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
