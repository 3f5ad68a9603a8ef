#include "parallel/mpi_communicator.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/core/buffer.h"
#include "parallel/process_mesh.h"
#include "parallel/self_communicator.h"
#include "parallel/thread_communicator.h"
#include "tests/parallel/collective_checks.h"
#include "tests/parallel/exchange_checks.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"

// Runs under mpirun. The first failed expectation ends this rank's test but not the other ranks':
// the time limit of ctest is what ends a test that then hangs.

namespace tessera {
namespace {

MpiEnvironment& mpi() {
  static MpiEnvironment environment;
  return environment;
}

TEST(MpiCommunicator, AllReduceSumsInTheOrderOfTheRanks) {
  check_all_reduce(mpi().world());
}
TEST(MpiCommunicator, MaximumAndNan) {
  check_max_and_nan(mpi().world());
}
TEST(MpiCommunicator, AllGatherConcatenates) {
  check_all_gather(mpi().world());
}
TEST(MpiCommunicator, ReduceScatterKeepsOwnRows) {
  check_reduce_scatter(mpi().world());
}
TEST(MpiCommunicator, AllToAllMovesUnevenRows) {
  check_all_to_all(mpi().world());
}
TEST(MpiCommunicator, BroadcastFromEveryRoot) {
  check_broadcast(mpi().world());
}
TEST(MpiCommunicator, ValuesAreSummed) {
  check_values(mpi().world());
}
TEST(MpiCommunicator, SplitsAndSplitsAgain) {
  check_split(mpi().world());
}

TEST(MpiCommunicator, PartsMayBeInTheirPlace) {
  check_in_place(mpi().world());
}
TEST(MpiCommunicator, RowsGoWhereTheyBelong) {
  check_exchange_rows(mpi().world());
}
TEST(MpiCommunicator, ManyExchangesAreUnderWay) {
  check_pending(mpi().world());
  check_pending_in_chunks(mpi().world());
}
TEST(MpiCommunicator, FetchesAndGivesBackRows) {
  check_row_exchange(mpi().world());
}
TEST(MpiCommunicator, CountsBytesAndKeepsRecords) {
  check_traffic(mpi().world());
}

TEST(MpiCommunicator, HasTheBitsOfTheThreadCommunicator) {
  Communicator& world = mpi().world();
  std::vector<uint64_t> threads(static_cast<size_t>(world.size()));
  run_ranks(world.size(), [&](Communicator& of_threads) {
    threads[static_cast<size_t>(of_threads.rank())] = exchange_digest(of_threads);
  });
  EXPECT_EQ(exchange_digest(world), threads[static_cast<size_t>(world.rank())]);
}

TEST(MpiCommunicator, AMeshCutsTheWorld) {
  Communicator& world = mpi().world();
  const ProcessMesh mesh(world, {.data = world.size() / 2, .tensor = 2});
  EXPECT_EQ(mesh.coordinate(Axis::kTensor), world.rank() % 2);
  std::vector<double> sum{static_cast<double>(world.rank())};
  mesh.along(Axis::kTensor).all_reduce_values(sum);
  EXPECT_EQ(sum[0], world.rank() / 2 * 4 + 1);
}

TEST(MpiCommunicator, CountsThatDisagreeAreNamed) {
  Communicator& world = mpi().world();
  Stream stream{support::device()};
  const size_t ranks = static_cast<size_t>(world.size());
  const support::Tensor send(DType::kF32, {64, 3});
  const support::Tensor receive(DType::kF32, {64, 3});
  std::vector<int64_t> sent(ranks, 1);
  std::vector<int64_t> received(ranks, 1);
  // Rank 0 expects one row more of its right neighbour than that one sends.
  if (world.rank() == 0) received[1] = 2;
  const auto exchange = [&] { world.all_to_all(stream, send.view(), sent, receive, received); };
  if (world.rank() == 0) {
    support::expect_error(exchange, "all_to_all on world: rank 1 sent 1 rows, rank 0 expects 2");
  } else {
    exchange();
  }
}

TEST(MpiCommunicator, TransfersThatDisagreeAreNamed) {
  Communicator& world = mpi().world();
  Stream stream{support::device()};
  const support::Tensor from(DType::kF32, {64, 3});
  const support::Tensor to(DType::kF32, {64, 3});
  // What rank 1 sends rank 0, and what rank 0 expects: fewer, none, and more.
  const std::vector<std::pair<int64_t, int64_t>> cases{{5, 8}, {0, 8}, {9, 8}};
  const std::vector<std::string> sentences{"rank 1 sent 5 rows, rank 0 expects 8",
                                           "rank 1 sent 0 rows, rank 0 expects 8",
                                           "rank 1 sent more than the 8 rows that rank 0 expects"};
  for (size_t i = 0; i < cases.size(); ++i) {
    if (world.rank() == 0) {
      const std::vector<RowTransfer> receives{{1, 3, cases[i].second}};
      support::expect_error([&] { world.exchange_rows(stream, from.view(), {}, to, receives); },
                            "exchange_rows on world: " + sentences[i]);
    } else if (world.rank() == 1) {
      const std::vector<RowTransfer> sends{{0, 50, cases[i].first}};
      world.exchange_rows(stream, from.view(), sends, to, {});
    } else {
      world.exchange_rows(stream, from.view(), {}, to, {});
    }
    world.barrier();
  }
}

TEST(MpiCommunicator, AMessageThatNobodyTakesStaysOutOfTheNextExchange) {
  Communicator& world = mpi().world();
  Stream stream{support::device()};
  const support::Tensor from = support::filled(DType::kF32, {4, 3}, world.rank());
  const support::Tensor to(DType::kF32, {4, 3});
  std::vector<RowTransfer> sends;
  if (world.rank() == 1) sends.push_back({0, 0, 1});
  world.exchange_rows(stream, from.view(), sends, to, {});
  const int right = (world.rank() + 1) % world.size();
  const int left = (world.rank() + world.size() - 1) % world.size();
  const std::vector<RowTransfer> to_right{{right, 0, 4}};
  const std::vector<RowTransfer> from_left{{left, 0, 4}};
  world.exchange_rows(stream, from.view(), to_right, to, from_left);
  stream.synchronize();
  EXPECT_EQ(support::to_doubles(to.view()), std::vector<double>(12, left));
}

/// Exchanges of all lengths, one after the other and together.
void exchange_much(Communicator& ranks, Device device) {
  Stream stream{device};
  const auto rows = [&](int64_t count) {
    return Buffer(device, count * 4);  // zeros
  };
  const auto view = [](const Buffer& buffer) {
    return buffer.view(DType::kF32, {buffer.bytes() / 4});
  };
  for (const int64_t elements : {int64_t{10}, int64_t{20011}, int64_t{6000003}}) {
    const Buffer data = rows(elements);
    ranks.all_reduce(stream, view(data), Reduction::kSum);
    const Buffer whole = rows(elements * ranks.size());
    const Buffer part = rows(elements);
    ranks.reduce_scatter(stream, view(whole), view(part));
    Pending sum = ranks.start_all_reduce(stream, view(data), Reduction::kSum);
    ranks.all_gather(stream, view(part), view(whole));
    Pending scatter = ranks.start_reduce_scatter(stream, view(whole), view(part));
    sum.wait();
    scatter.wait();
  }
}

/// Nothing but sums, so that no other exchange hides what they need.
void sum_much(Communicator& ranks, Device device) {
  Stream stream{device};
  for (const int64_t elements : {int64_t{10}, int64_t{20011}, int64_t{6000003}}) {
    const Buffer data(device, elements * 4);
    ranks.all_reduce(stream, data.view(DType::kF32, {elements}), Reduction::kSum);
  }
}

TEST(MpiCommunicator, HasTheScratchThatAPlanCounts) {
  Communicator& world = mpi().world();
  const std::vector<int> colors(static_cast<size_t>(world.size()), 0);
  const std::unique_ptr<Communicator> group = world.split(colors, "scratch");
  const int64_t before = world.log().scratch();
  exchange_much(*group, Device{});
  const std::unique_ptr<Communicator> sums = world.split(colors, "sums");
  sum_much(*sums, Device{});
  SelfCommunicator planned(world.rank(), world.size());
  sum_much(*planned.split(colors, "sums"), Device{DeviceKind::kPlan});
  exchange_much(planned, Device{DeviceKind::kPlan});
  EXPECT_EQ(planned.log().scratch(), world.log().scratch() - before);
  EXPECT_GT(planned.log().scratch(), 0);
  std::vector<double> values(100000);
  group->all_reduce_values(values);
  planned.plan_values(100000);
  EXPECT_EQ(planned.log().scratch(), world.log().scratch() - before);
}

TEST(MpiEnvironment, IsTheOnlyOne) {
  mpi();
  support::expect_error([] { MpiEnvironment second; }, "MPI is already initialised");
  EXPECT_NE(MpiEnvironment::library(), "");
}

TEST(CheckWorldSize, SeesManyWorldsOfOneRank) {
  check_world_size(4, {});
  check_world_size(4, {.by_mpirun = 4});
  check_world_size(4, {.by_srun = 4});
  check_world_size(4, {.by_mpirun = 4, .by_srun = 2});
  check_world_size(4, {.by_mpirun = 4, .by_sbatch = 4});
  check_world_size(4, {.by_srun = 4, .by_sbatch = 8});
  support::expect_error(
      [] { check_world_size(4, {.by_mpirun = 4, .by_sbatch = 8}); },
      "the Slurm job has 8 tasks (SLURM_NTASKS), but MPI sees a world of 4; start it with mpirun "
      "-np 8, or unset SLURM_NTASKS if 4 is meant");
  support::expect_error(
      [] { check_world_size(1, {.by_srun = 8}); },
      "srun started 8 ranks, but MPI sees a world of 1: every rank is alone; use `srun "
      "--mpi=pmix`, or mpirun inside the job");
  support::expect_error([] { check_world_size(2, {.by_mpirun = 4, .by_srun = 2}); },
                        "mpirun started 4 ranks, but MPI sees a world of 2; use the mpirun of");
}

}  // namespace
}  // namespace tessera
