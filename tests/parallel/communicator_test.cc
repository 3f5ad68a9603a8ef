#include "parallel/communicator.h"

#include <gtest/gtest.h>

#include <vector>

#include "parallel/self_communicator.h"
#include "parallel/thread_communicator.h"
#include "tests/parallel/collective_checks.h"
#include "tests/parallel/exchange_checks.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"

namespace tessera {
namespace {

using support::Tensor;

class EveryWorld : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, EveryWorld, testing::Values(1, 2, 3, 8));

TEST_P(EveryWorld, AllReduceSumsInTheOrderOfTheRanks) {
  run_ranks(GetParam(), check_all_reduce);
}
TEST_P(EveryWorld, MaximumAndNan) {
  run_ranks(GetParam(), check_max_and_nan);
}
TEST_P(EveryWorld, AllGatherConcatenates) {
  run_ranks(GetParam(), check_all_gather);
}
TEST_P(EveryWorld, ReduceScatterKeepsOwnRows) {
  run_ranks(GetParam(), check_reduce_scatter);
}
TEST_P(EveryWorld, AllToAllMovesUnevenRows) {
  run_ranks(GetParam(), check_all_to_all);
}
TEST_P(EveryWorld, BroadcastFromEveryRoot) {
  run_ranks(GetParam(), check_broadcast);
}
TEST_P(EveryWorld, ValuesAreSummed) {
  run_ranks(GetParam(), check_values);
}
TEST_P(EveryWorld, SplitsAndSplitsAgain) {
  run_ranks(GetParam(), check_split);
}

TEST_P(EveryWorld, PartsMayBeInTheirPlace) {
  run_ranks(GetParam(), check_in_place);
}
TEST_P(EveryWorld, RowsGoWhereTheyBelong) {
  run_ranks(GetParam(), check_exchange_rows);
}
TEST_P(EveryWorld, ManyExchangesAreUnderWay) {
  run_ranks(GetParam(), check_pending);
}
TEST_P(EveryWorld, CountsBytesAndKeepsRecords) {
  run_ranks(GetParam(), check_traffic);
}

/// The sentence of the Error that `call(world, stream)` throws on every one of three ranks.
template <class Call>
void expect_refused(const std::string& sentence, Call call) {
  run_ranks(3, [&](Communicator& world) {
    Stream stream{support::device()};
    support::expect_error([&] { call(world, stream); }, sentence);
  });
}

TEST(Communicator, RefusesDtypesThatCannotBeSummed) {
  const Tensor bytes(DType::kU8, {6});
  const Tensor part(DType::kU8, {2});
  expect_refused("all_reduce: dtype is u8, expected f32, bf16, i32 or i64",
                 [&](Communicator& world, Stream& stream) {
                   world.all_reduce(stream, bytes, Reduction::kSum);
                 });
  expect_refused("reduce_scatter: dtype is u8, expected f32, bf16, i32 or i64",
                 [&](Communicator& world, Stream& stream) {
                   world.reduce_scatter(stream, bytes.view(), part);
                 });
}

TEST(Communicator, RefusesAPartThatDoesNotFit) {
  const Tensor part(DType::kF32, {2, 5});
  const Tensor whole(DType::kF32, {7, 5});
  const Tensor other(DType::kI32, {6, 5});
  expect_refused(
      "all_gather: whole is [7, 5], expected [6, 5], which is 3 ranks times the part, [2, 5]",
      [&](Communicator& world, Stream& stream) { world.all_gather(stream, part.view(), whole); });
  expect_refused(
      "all_gather: part is f32, expected the dtype of whole, i32",
      [&](Communicator& world, Stream& stream) { world.all_gather(stream, part.view(), other); });
  expect_refused("reduce_scatter: whole is [7, 5], expected [6, 5]",
                 [&](Communicator& world, Stream& stream) {
                   world.reduce_scatter(stream, whole.view(), part);
                 });
}

TEST(Communicator, RefusesRowsThatDoNotFit) {
  const Tensor send(DType::kF32, {4, 5});
  const Tensor receive(DType::kF32, {4, 5});
  const Tensor wide(DType::kF32, {4, 6});
  const Tensor whole_numbers(DType::kI32, {4, 5});
  const auto expect = [&](const std::string& sentence, const Tensor& into,
                          const std::vector<int64_t>& sent, const std::vector<int64_t>& received) {
    expect_refused(sentence, [&](Communicator& world, Stream& stream) {
      world.all_to_all(stream, send.view(), sent, into, received);
    });
  };
  expect("all_to_all: receive is [4, 6], expected rows like those of send, [4, 5]", wide, {1, 1, 1},
         {1, 1, 1});
  expect("all_to_all: receive is i32, expected the dtype of send, f32", whole_numbers, {1, 1, 1},
         {1, 1, 1});
  expect("all_to_all: send_rows has 2 counts, expected one for each of 3 ranks", receive, {1, 1},
         {1, 1, 1});
  expect("all_to_all: receive_rows has -1, expected counts of at least 0", receive, {1, 1, 1},
         {1, -1, 1});
  expect("all_to_all: send_rows add up to 5, but send is [4, 5]", receive, {1, 1, 3}, {1, 1, 1});
  expect("all_to_all: receive_rows add up to 6, but receive is [4, 5]", receive, {1, 1, 1},
         {2, 2, 2});
}

TEST(Communicator, RefusesPartsThatAreNotInTheirPlace) {
  run_ranks(3, [](Communicator& world) {
    Stream stream{support::device()};
    const Tensor own(DType::kF32, {6, 2});
    const TensorView part = own.view().rows(world.rank() == 2 ? 3 : 2 * world.rank() + 1, 2);
    support::expect_error([&] { world.all_gather(stream, part, own); },
                          concat("all_gather: part overlaps whole, but is not rows ",
                                 2 * world.rank(), " to ", 2 * world.rank() + 1));
    support::expect_error([&] { world.reduce_scatter(stream, own.view(), part); },
                          "reduce_scatter: part overlaps whole");
  });
}

TEST(Communicator, RefusesTransfersThatDoNotFit) {
  const Tensor from(DType::kF32, {4, 5});
  const Tensor to(DType::kF32, {6, 5});
  using Rows = std::vector<RowTransfer>;
  const auto expect = [&](const std::string& sentence, const Rows& sends, const Rows& receives) {
    expect_refused(sentence, [&](Communicator& world, Stream& stream) {
      world.exchange_rows(stream, from.view(), sends, to, receives);
    });
  };
  expect("exchange_rows: sends has rank 3, expected 0 to 2", {{3, 0, 1}}, {});
  expect("exchange_rows: receives has rank -1, expected 0 to 2", {}, {{-1, 0, 1}});
  expect(
      "exchange_rows: sends has 3 rows from 2 on for rank 1, which are not in the tensor, [4, 5]",
      {{1, 2, 3}}, {});
  expect("exchange_rows: receives has -1 rows from 2 on for rank 1", {}, {{1, 2, -1}});
  const Tensor wide(DType::kF32, {6, 6});
  expect_refused("exchange_rows: to is [6, 6], expected rows like those of from, [4, 5]",
                 [&](Communicator& world, Stream& stream) {
                   world.exchange_rows(stream, from.view(), {}, wide, {});
                 });
  SelfCommunicator world;
  Stream stream{support::device()};
  support::expect_error(
      [&] {
        world.exchange_rows(stream, from.view(), Rows{{0, 0, 1}}, to, Rows{{0, 0, 2}});
      },
      "exchange_rows: this rank sends itself 1 rows and expects 2");
  support::expect_error(
      [&] {
        world.exchange_rows(stream, from.view(), Rows{{0, 0, 1}}, to, {});
      },
      "exchange_rows: this rank has not as many sends to itself as receives");
}

TEST(Communicator, RefusesWrongRootsColorsAndPlaces) {
  const Tensor data(DType::kF32, {3});
  expect_refused("broadcast: root is 3, expected 0 to 2",
                 [&](Communicator& world, Stream& stream) { world.broadcast(stream, data, 3); });
  expect_refused("split: colors has 2 entries, expected one for each of 3 ranks",
                 [](Communicator& world, Stream&) {
                   world.split(std::vector<int>{0, 1}, "half");
                 });
  expect_refused("split: a color is -1, expected at least 0", [](Communicator& world, Stream&) {
    world.split(std::vector<int>{0, 1, -1}, "half");
  });
  expect_refused("all_reduce: data [3] is not on the device of the stream",
                 [](Communicator& world, Stream& stream) {
                   world.all_reduce(stream, support::plan_view(DType::kF32, {3}), Reduction::kSum);
                 });
  expect_refused("broadcast: data is no tensor",
                 [](Communicator& world, Stream& stream) { world.broadcast(stream, {}, 0); });
}

TEST(Communicator, APlanChecksShapesAndMovesNothing) {
  SelfCommunicator planned(713, 1000);
  Stream stream{Device{DeviceKind::kPlan}};
  const TensorView part = support::plan_view(DType::kF32, {2, 4});
  const TensorView whole = support::plan_view(DType::kF32, {2000, 4});
  planned.all_reduce(stream, part, Reduction::kSum);
  planned.all_gather(stream, part, whole);
  planned.reduce_scatter(stream, whole, part);
  planned.broadcast(stream, part, 999);
  const std::vector<int64_t> rows(1000, 2);
  planned.all_to_all(stream, whole, rows, whole, rows);
  const std::vector<RowTransfer> sends{{712, 0, 2}, {713, 0, 1}, {714, 1, 1}};
  const std::vector<RowTransfer> receives{{712, 0, 1}, {713, 1, 1}};
  EXPECT_TRUE(planned.start_exchange_rows(stream, part, sends, whole, receives).active());
  CollectiveLog& log = planned.log();
  const auto traffic = [&](Collective operation) { return log.traffic("world", operation); };
  EXPECT_EQ(traffic(Collective::kAllReduce), (Traffic{1, 999 * 32, 999 * 32}));
  EXPECT_EQ(traffic(Collective::kAllGather), (Traffic{1, 999 * 32, 999 * 32}));
  EXPECT_EQ(traffic(Collective::kReduceScatter), (Traffic{1, 999 * 32, 999 * 32}));
  EXPECT_EQ(traffic(Collective::kBroadcast), (Traffic{1, 0, 32}));
  EXPECT_EQ(traffic(Collective::kAllToAll), (Traffic{1, 999 * 32, 999 * 32}));
  EXPECT_EQ(traffic(Collective::kExchangeRows), (Traffic{1, 3 * 16, 16}));
  EXPECT_TRUE(log.record(log.size() - 1).completed);
  support::expect_error([&] { planned.all_gather(stream, part, part); },
                        "all_gather: whole is [2, 4], expected [2000, 4]");
}

}  // namespace
}  // namespace tessera
