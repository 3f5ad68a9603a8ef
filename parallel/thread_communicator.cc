#include "parallel/thread_communicator.h"

#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "parallel/host_communicator.h"
#include "parallel/message_sizes.h"
#include "parallel/ordered_reduction.h"
#include "parallel/subgroup.h"

namespace tessera {

namespace {

/// What all ranks of one run share: whether it can go on.
struct Run {
  explicit Run(int ranks) : has_left(static_cast<size_t>(ranks), false) {}

  /// Called once by each rank when its body has ended, with its exception or nullptr.
  void leave(int rank, std::exception_ptr exception) {
    const std::lock_guard lock(mutex);
    has_left[static_cast<size_t>(rank)] = true;
    if (exception != nullptr && first == nullptr) {
      first = std::move(exception);
      failed_rank = rank;
    }
    changed.notify_all();
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<bool> has_left;
  std::exception_ptr first;
  int failed_rank = -1;
};

struct Group;

/// What one rank brings to an exchange. The ranks read each other's tensors where they are.
struct Slot {
  const char* call = "";
  ConstTensorView tensor = {};
  int64_t number = 0;  // of the exchange, if it could be under way with others
  std::span<const int64_t> rows = {};
  std::span<const RowTransfer> sends = {};
  std::span<const double> values = {};
  int choice = 0;                     // the reduction or the root
  std::shared_ptr<Group> child = {};  // of the first rank of each new group, during split
};

/// What the ranks of one communicator share: their slots, and a gate that opens when all are there.
struct Group {
  Group(Run& the_run, std::vector<int> world_ranks)
      : run(the_run), members(std::move(world_ranks)), slots(members.size()) {}

  /// Waits for all members before an exchange. Throws when one of them will never come.
  void enter(const char* call) {
    std::unique_lock lock(run.mutex);
    check_complete(call);
    const int64_t turn = arrive();
    run.changed.wait(lock, [&] { return turns != turn || run.first != nullptr || absent() >= 0; });
    if (turns == turn) check_complete(call);
  }

  /// Waits for all members inside an exchange. All of them entered it, so all will come: nobody
  /// goes on, not even with an exception, while another may still read from its tensors.
  void meet() {
    std::unique_lock lock(run.mutex);
    const int64_t turn = arrive();
    run.changed.wait(lock, [&] { return turns != turn; });
  }

  Run& run;
  std::vector<int> members;
  std::vector<Slot> slots;

 private:
  int64_t arrive() {
    const int64_t turn = turns;
    if (++arrived == static_cast<int>(members.size())) {
      arrived = 0;
      ++turns;
      run.changed.notify_all();
    }
    return turn;
  }

  void check_complete(const char* call) const {
    CHECK(run.first == nullptr, call, ": rank ", run.failed_rank,
          " has failed, so this exchange cannot take place");
    CHECK(absent() < 0, call, ": rank ", absent(), " has returned without taking part in it");
  }

  /// A member whose body has ended, or -1.
  int absent() const {
    for (const int member : members) {
      if (run.has_left[static_cast<size_t>(member)]) return member;
    }
    return -1;
  }

  int arrived = 0;
  int64_t turns = 0;
};

void copy(const void* from, void* to, int64_t bytes) {
  if (bytes > 0 && to != from) std::memcpy(to, from, static_cast<size_t>(bytes));
}

/// Why the calls of two ranks do not belong to one exchange, or nothing.
std::string mismatch(const Slot& a, const Slot& b) {
  if (std::strcmp(a.call, b.call) != 0) return concat("they meet in ", a.call, " and ", b.call);
  if (a.number != b.number) {
    return concat("they wait for exchange ", a.number, " and exchange ", b.number);
  }
  if (a.choice != b.choice) return "they disagree about the reduction or the root";
  if (a.values.size() != b.values.size()) {
    return concat("they have ", a.values.size(), " and ", b.values.size(), " values");
  }
  const bool by_rows = !a.rows.empty() || std::strcmp(a.call, "exchange_rows") == 0;
  const bool same_rows =
      by_rows ? row_bytes(a.tensor) == row_bytes(b.tensor) : a.tensor.shape() == b.tensor.shape();
  if (same_rows && a.tensor.dtype() == b.tensor.dtype()) return {};
  return concat("they have ", name_of(a.tensor.dtype()), " ", a.tensor.shape(), " and ",
                name_of(b.tensor.dtype()), " ", b.tensor.shape());
}

/// The time in which the slots of all ranks may be read.
class Exchange {
 public:
  Exchange(Group& group, int rank, const Slot& mine) : group_(group) {
    group.slots[static_cast<size_t>(rank)] = mine;
    group.enter(mine.call);
    std::string problem;
    for (size_t r = 1; problem.empty() && r < group.slots.size(); ++r) {
      problem = mismatch(group.slots[0], group.slots[r]);
      if (!problem.empty()) problem = concat(mine.call, ": ranks 0 and ", r, ": ", problem);
    }
    if (problem.empty()) return;
    group.meet();
    CHECK(false, problem);
  }
  ~Exchange() { group_.meet(); }
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

 private:
  Group& group_;
};

/// An exchange that was started: all work is done when it is waited for, so that a rank that reads
/// its result or changes its tensors too early gets wrong numbers here, as it might under MPI.
struct Started {
  bool free = true;
  Collective operation = Collective::kBarrier;
  int64_t number = 0;
  Reduction reduction = Reduction::kSum;
  ConstTensorView from;
  TensorView to;
  std::vector<int64_t> send_rows;
  std::vector<int64_t> receive_rows;
  std::vector<RowTransfer> sends;
  std::vector<RowTransfer> receives;

  Slot slot() const {
    return {.call = name_of(operation),
            .tensor = from,
            .number = number,
            .rows = send_rows,
            .sends = sends,
            .choice = static_cast<int>(reduction)};
  }
};

class ThreadCommunicator final : public HostCommunicator {
 public:
  // The group is shared by its ranks and lives as long as the last of them.
  ThreadCommunicator(std::shared_ptr<Group> group, int rank)
      : HostCommunicator(rank, static_cast<int>(group->members.size())),
        group_(std::move(group)),
        parts_(static_cast<size_t>(size())) {}
  ThreadCommunicator(std::shared_ptr<Group> group, int rank, const Communicator& parent,
                     const std::string& name)
      : HostCommunicator(rank, static_cast<int>(group->members.size()), parent, name),
        group_(std::move(group)),
        parts_(static_cast<size_t>(size())) {}

 private:
  int host_start(const Call& call) override;
  void host_finish(int ticket) override;
  void host_broadcast(TensorView data, int root) override;
  void do_all_reduce_values(std::span<double> values) override;
  void do_barrier() override { const Exchange exchange(*group_, rank(), {.call = "barrier"}); }
  std::unique_ptr<Communicator> do_split(std::span<const int> colors,
                                         const std::string& name) override;

  void all_reduce_now(const Started& work);
  void all_gather_now(const Started& work);
  void reduce_scatter_now(const Started& work);
  void all_to_all_now(const Started& work);
  void exchange_rows_now(const Started& work);

  const Slot& slot(int rank) const { return group_->slots[static_cast<size_t>(rank)]; }

  /// The sum of elements [begin, begin + count) of the tensors of all ranks.
  void reduce_slots(int64_t begin, int64_t count, Reduction reduction, void* out) {
    const int64_t offset = begin * size_of(slot(0).tensor.dtype());
    for (int r = 0; r < size(); ++r) {
      parts_[static_cast<size_t>(r)] = static_cast<const char*>(slot(r).tensor.data()) + offset;
    }
    reduce_in_order(slot(0).tensor.dtype(), reduction, parts_, count, out);
  }

  std::shared_ptr<Group> group_;
  std::vector<const void*> parts_;
  std::vector<std::unique_ptr<Started>> started_;
};

int ThreadCommunicator::host_start(const Call& call) {
  size_t ticket = 0;
  while (ticket < started_.size() && !started_[ticket]->free) ++ticket;
  if (ticket == started_.size()) started_.push_back(std::make_unique<Started>());
  Started& work = *started_[ticket];
  work.free = false;
  work.operation = call.operation;
  work.number = call.number;
  work.reduction = call.reduction;
  work.from = call.from;
  work.to = call.to;
  work.send_rows.assign(call.send_rows.begin(), call.send_rows.end());
  work.receive_rows.assign(call.receive_rows.begin(), call.receive_rows.end());
  work.sends.assign(call.sends.begin(), call.sends.end());
  work.receives.assign(call.receives.begin(), call.receives.end());
  return static_cast<int>(ticket);
}

void ThreadCommunicator::host_finish(int ticket) {
  Started& work = *started_[static_cast<size_t>(ticket)];
  work.free = true;  // nothing is started before it has ended
  if (work.operation == Collective::kAllReduce) return all_reduce_now(work);
  if (work.operation == Collective::kAllGather) return all_gather_now(work);
  if (work.operation == Collective::kReduceScatter) return reduce_scatter_now(work);
  if (work.operation == Collective::kAllToAll) return all_to_all_now(work);
  exchange_rows_now(work);
}

// Each rank reduces one slice of everybody's data into its own, which nobody else reads before the
// second meeting; then each copies the other slices.
void ThreadCommunicator::all_reduce_now(const Started& work) {
  const int64_t width = size_of(work.to.dtype());
  const auto slice = [&](int r) { return slice_begin(work.to.elements(), r, size()); };
  const Exchange exchange(*group_, rank(), work.slot());
  char* own = static_cast<char*>(work.to.data());
  reduce_slots(slice(rank()), slice(rank() + 1) - slice(rank()), work.reduction,
               own + slice(rank()) * width);
  group_->meet();
  for (int r = 0; r < size(); ++r) {
    if (r == rank()) continue;
    copy(static_cast<const char*>(slot(r).tensor.data()) + slice(r) * width, own + slice(r) * width,
         (slice(r + 1) - slice(r)) * width);
  }
}

void ThreadCommunicator::all_gather_now(const Started& work) {
  const Exchange exchange(*group_, rank(), work.slot());
  const int64_t bytes = work.from.bytes();
  for (int r = 0; r < size(); ++r) {
    copy(slot(r).tensor.data(), static_cast<char*>(work.to.data()) + r * bytes, bytes);
  }
}

void ThreadCommunicator::reduce_scatter_now(const Started& work) {
  const Exchange exchange(*group_, rank(), work.slot());
  const int64_t elements = work.to.elements();
  reduce_slots(rank() * elements, elements, Reduction::kSum, work.to.data());
}

void ThreadCommunicator::all_to_all_now(const Started& work) {
  const Exchange exchange(*group_, rank(), work.slot());
  const int64_t width = row_bytes(work.from);
  char* out = static_cast<char*>(work.to.data());
  for (int r = 0; r < size(); ++r) {
    const std::span<const int64_t> rows = slot(r).rows;
    const size_t own = static_cast<size_t>(rank());
    const int64_t expected = work.receive_rows[static_cast<size_t>(r)];
    CHECK(rows[own] == expected, "all_to_all on ", name(), ": rank ", r, " sent ", rows[own],
          " rows, rank ", rank(), " expects ", expected);
    int64_t first = 0;
    for (size_t to = 0; to < own; ++to) first += rows[to];
    copy(static_cast<const char*>(slot(r).tensor.data()) + first * width, out, rows[own] * width);
    out += rows[own] * width;
  }
}

void ThreadCommunicator::exchange_rows_now(const Started& work) {
  const Exchange exchange(*group_, rank(), work.slot());
  const int64_t width = row_bytes(work.from);
  const auto next = [](auto transfers, size_t at, int peer) {
    while (at < transfers.size() && transfers[at].peer != peer) ++at;
    return at;
  };
  const std::span<const RowTransfer> receives(work.receives);
  for (int r = 0; r < size(); ++r) {
    const std::span<const RowTransfer> sends = slot(r).sends;
    size_t from = next(sends, 0, rank());
    size_t to = next(receives, 0, r);
    while (from < sends.size() && to < receives.size()) {
      CHECK(sends[from].rows == receives[to].rows, "exchange_rows on ", name(), ": rank ", r,
            " sent ", sends[from].rows, " rows, rank ", rank(), " expects ", receives[to].rows);
      copy(static_cast<const char*>(slot(r).tensor.data()) + sends[from].first * width,
           static_cast<char*>(work.to.data()) + receives[to].first * width,
           sends[from].rows * width);
      from = next(sends, from + 1, rank());
      to = next(receives, to + 1, r);
    }
    CHECK(from == sends.size() && to == receives.size(), "exchange_rows on ", name(), ": rank ", r,
          " sends ", from == sends.size() ? "fewer" : "more", " transfers than rank ", rank(),
          " receives from it");
  }
}

void ThreadCommunicator::host_broadcast(TensorView data, int root) {
  const Exchange exchange(*group_, rank(), {.call = "broadcast", .tensor = data, .choice = root});
  if (rank() != root) copy(slot(root).tensor.data(), data.data(), data.bytes());
}

void ThreadCommunicator::do_all_reduce_values(std::span<double> values) {
  const std::vector<double> mine(values.begin(), values.end());
  const Exchange exchange(*group_, rank(), {.call = "all_reduce_values", .values = mine});
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = slot(0).values[i];
    for (int r = 1; r < size(); ++r) values[i] += slot(r).values[i];
  }
}

std::unique_ptr<Communicator> ThreadCommunicator::do_split(std::span<const int> colors,
                                                           const std::string& name) {
  const Subgroup group(colors, rank());
  Slot mine{.call = "split"};
  if (group.rank == 0) {
    std::vector<int> members;
    for (const int member : group.members) {
      members.push_back(group_->members[static_cast<size_t>(member)]);
    }
    mine.child = std::make_shared<Group>(group_->run, std::move(members));
  }
  const Exchange exchange(*group_, rank(), mine);
  std::shared_ptr<Group> child = slot(group.members.front()).child;
  return std::make_unique<ThreadCommunicator>(std::move(child), group.rank, *this, name);
}

}  // namespace

void run_ranks(int ranks, const std::function<void(Communicator& world)>& body) {
  CHECK(ranks >= 1, "run_ranks: ranks is ", ranks, ", expected at least 1");
  Run run(ranks);
  std::vector<int> members;
  for (int rank = 0; rank < ranks; ++rank) members.push_back(rank);
  const auto group = std::make_shared<Group>(run, members);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      set_error_rank(rank, ranks);
      std::exception_ptr exception;
      try {
        ThreadCommunicator world(group, rank);
        body(world);
      } catch (...) {
        exception = std::current_exception();
      }
      run.leave(rank, std::move(exception));
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (run.first != nullptr) std::rethrow_exception(run.first);
}

}  // namespace tessera
