#include "parallel/nccl_communicator.h"

#include <gtest/gtest.h>

#include <vector>

#include "parallel/process_mesh.h"
#include "parallel/thread_communicator.h"
#include "tests/parallel/collective_checks.h"
#include "tests/parallel/exchange_checks.h"
#include "tests/parallel/nccl_ranks.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

using support::Tensor;

class NcclCommunicatorTest : public testing::Test {
 protected:
  template <class Body>
  void on_ranks(Body body) {
    const std::string why = run_nccl_ranks(body);
    if (!why.empty()) GTEST_SKIP() << why;
  }
};

TEST_F(NcclCommunicatorTest, AllReduceSumsInTheOrderOfTheRanks) {
  on_ranks(check_all_reduce);
}
TEST_F(NcclCommunicatorTest, MaximumAndNan) {
  on_ranks(check_max_and_nan);
}
TEST_F(NcclCommunicatorTest, AllGatherConcatenates) {
  on_ranks(check_all_gather);
}
TEST_F(NcclCommunicatorTest, ReduceScatterKeepsOwnRows) {
  on_ranks(check_reduce_scatter);
}
TEST_F(NcclCommunicatorTest, AllToAllMovesUnevenRows) {
  on_ranks(check_all_to_all);
}
TEST_F(NcclCommunicatorTest, BroadcastFromEveryRoot) {
  on_ranks(check_broadcast);
}
TEST_F(NcclCommunicatorTest, ValuesAreSummed) {
  on_ranks(check_values);
}
TEST_F(NcclCommunicatorTest, SplitsAndSplitsAgain) {
  on_ranks(check_split);
}
TEST_F(NcclCommunicatorTest, PartsMayBeInTheirPlace) {
  on_ranks(check_in_place);
}
TEST_F(NcclCommunicatorTest, RowsGoWhereTheyBelong) {
  on_ranks(check_exchange_rows);
}
TEST_F(NcclCommunicatorTest, ManyExchangesAreUnderWay) {
  on_ranks(check_pending);
}
TEST_F(NcclCommunicatorTest, CountsBytesAndKeepsRecords) {
  on_ranks(check_traffic);
}

TEST_F(NcclCommunicatorTest, LongSumsHaveTheBitsOfTheHost) {
  on_ranks([](Communicator& world) {
    const int64_t rows = long_sum() / world.size() + 17;
    const auto brought = [&](int rank) {
      std::vector<float> values(static_cast<size_t>(rows * world.size()));
      uint32_t word = static_cast<uint32_t>(rank) + 1;
      for (float& x : values) {
        word = word * 1664525 + 1013904223;
        x = std::ldexp(static_cast<float>(word), -static_cast<int>(word >> 28));
      }
      return values;
    };
    const std::vector<float> mine = brought(world.rank());
    std::vector<float> sums = brought(0);
    for (int r = 1; r < world.size(); ++r) {
      const std::vector<float> theirs = brought(r);
      for (size_t i = 0; i < sums.size(); ++i) sums[i] += theirs[i];
    }
    Stream stream{support::device()};
    const Tensor whole(DType::kF32, {rows * world.size()});
    const Tensor part(DType::kF32, {rows});
    std::copy(mine.begin(), mine.end(), whole.as<float>().begin());
    Pending scatter = world.start_reduce_scatter(stream, whole.view(), part);
    scatter.wait();
    world.all_reduce(stream, whole, Reduction::kSum);
    world.synchronize(stream);
    const auto found = whole.as<float>();
    EXPECT_TRUE(std::equal(found.begin(), found.end(), sums.begin())) << "all_reduce";
    const auto own = part.as<float>();
    EXPECT_TRUE(std::equal(own.begin(), own.end(), sums.begin() + world.rank() * rows))
        << "reduce_scatter";
  });
}

TEST_F(NcclCommunicatorTest, HostTensorsTakeTheOtherRoad) {
  on_ranks([](Communicator& world) {
    Stream stream{Device{}};
    std::vector<float> values(5, 1.0f + static_cast<float>(world.rank()));
    const TensorView view(values.data(), DType::kF32, {5}, Device{});
    world.all_reduce(stream, view, Reduction::kSum);
    Pending second = world.start_all_reduce(stream, view, Reduction::kMax);
    second.wait();
    world.broadcast(stream, view, 0);
    const float sum = static_cast<float>(world.size() * (world.size() + 1)) / 2;
    EXPECT_EQ(values, std::vector<float>(5, sum));
  });
}

// All exchanges of a world have one count, on whichever road they go.
TEST_F(NcclCommunicatorTest, NumbersItsExchangesInOneRow) {
  on_ranks([](Communicator& world) {
    Stream host{Device{}};
    Stream stream{support::device()};
    std::vector<float> values(5);
    const Tensor data(DType::kF32, {5});
    const CollectiveLog& log = world.log();
    world.barrier();
    const int64_t first = log.record(log.size() - 1).number;
    world.all_reduce(stream, data, Reduction::kSum);
    world.all_reduce(host, {values.data(), DType::kF32, {5}, Device{}}, Reduction::kSum);
    EXPECT_EQ(log.record(log.size() - 1).number, first + 2);
    EXPECT_EQ(log.name_of_group(log.record(log.size() - 1)), "world");
    world.synchronize(stream);
    EXPECT_GT(log.record(log.size() - 2).completed, 0);
  });
}

TEST_F(NcclCommunicatorTest, AMeshCutsTheWorld) {
  on_ranks([](Communicator& world) {
    const ProcessMesh mesh(world, {.tensor = world.size()});
    Stream stream{support::device()};
    const Tensor data = support::filled(DType::kI32, {3}, 1);
    mesh.along(Axis::kTensor).all_reduce(stream, data, Reduction::kSum);
    mesh.along(Axis::kData).all_reduce(stream, data, Reduction::kSum);
    world.synchronize(stream);
    EXPECT_EQ(data.as<int32_t>()[2], world.size());
    EXPECT_EQ(mesh.along(Axis::kTensor).name(), "tensor");
  });
}

}  // namespace
}  // namespace tessera
