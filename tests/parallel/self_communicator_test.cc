#include "parallel/self_communicator.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/parallel/collective_checks.h"
#include "tests/parallel/exchange_checks.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"

namespace tessera {
namespace {

using support::Tensor;

TEST(SelfCommunicator, IsAWorldOfOneRank) {
  SelfCommunicator world;
  EXPECT_EQ(world.rank(), 0);
  EXPECT_EQ(world.size(), 1);
  check_all_reduce(world);
  check_max_and_nan(world);
  check_all_gather(world);
  check_reduce_scatter(world);
  check_all_to_all(world);
  check_broadcast(world);
  check_values(world);
  check_split(world);
  check_in_place(world);
  check_exchange_rows(world);
  check_pending(world);
  check_row_exchange(world);
  check_traffic(world);
}

TEST(SelfCommunicator, APlannedRankSplitsButMovesNothing) {
  SelfCommunicator planned(5, 8);
  const auto half = planned.split(std::vector<int>{0, 1, 0, 1, 0, 1, 0, 1}, "half");
  EXPECT_EQ(half->size(), 4);
  EXPECT_EQ(half->rank(), 2);
  Stream stream{support::device()};
  const Tensor data(DType::kF32, {4});
  support::expect_error([&] { planned.all_reduce(stream, data, Reduction::kSum); },
                        "all_reduce: rank 5 of 8 is only planned");
  std::vector<double> values{1};
  support::expect_error([&] { planned.all_reduce_values(values); },
                        "all_reduce_values: rank 5 of 8 is only planned");
  support::expect_error([] { SelfCommunicator(8, 8); },
                        "self communicator: rank is 8, expected 0 to 7");
}

TEST(SelfCommunicator, APlannedRankCountsScratchOfExchangesUnderWay) {
  SelfCommunicator planned(1, 2);
  Stream stream{Device{DeviceKind::kPlan}};
  const auto plan = [](int64_t rows) {
    return TensorView(nullptr, DType::kF32, {rows}, Device{DeviceKind::kPlan});
  };
  const CollectiveLog& log = planned.log();
  planned.all_reduce(stream, plan(100), Reduction::kSum);  // short
  EXPECT_EQ(log.scratch(), 800);
  planned.plan_values(3);
  EXPECT_EQ(log.scratch(), 800);
  planned.all_reduce(stream, plan(100000), Reduction::kSum);
  EXPECT_EQ(log.scratch(), 800 + 400000);
  planned.all_reduce(stream, plan(80000), Reduction::kSum);  // in the same memory
  EXPECT_EQ(log.scratch(), 800 + 400000);
  {
    Pending first = planned.start_reduce_scatter(stream, plan(120000), plan(60000));
    const Pending second = planned.start_reduce_scatter(stream, plan(120000), plan(60000));
    EXPECT_TRUE(first.active());
    EXPECT_EQ(log.scratch(), 800 + 2 * 480000);
    first.wait();
    const Pending third = planned.start_reduce_scatter(stream, plan(120000), plan(60000));
  }
  planned.all_gather(stream, plan(60000), plan(120000));
  EXPECT_EQ(log.scratch(), 800 + 2 * 480000);
  EXPECT_EQ(log.traffic("world", Collective::kAllReduceValues), (Traffic{1, 24, 24}));
}

}  // namespace
}  // namespace tessera
