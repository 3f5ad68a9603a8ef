#include "parallel/row_exchange.h"

#include <gtest/gtest.h>

#include <vector>

#include "parallel/self_communicator.h"
#include "parallel/thread_communicator.h"
#include "tests/parallel/exchange_checks.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"

namespace tessera {
namespace {

using support::Tensor;

TEST(RowExchange, FetchesAndGivesBack) {
  for (const int ranks : {1, 2, 3, 4, 6}) run_ranks(ranks, check_row_exchange);
}

TEST(RowExchange, SendsOneMessageForTokensInARow) {
  // Ranges that touch: rank 1 has tokens 4 to 12 in two ranges, rank 0 needs them in two others.
  SelfCommunicator planned(0, 2);
  Stream stream{Device{DeviceKind::kPlan}};
  RowExchange exchange;
  exchange.plan(0, {{{0, 4}}, {{4, 8}, {8, 12}}}, {{{0, 6}, {6, 11}}, {{3, 4}, {4, 12}}});
  EXPECT_EQ(exchange.rows_needed(), 11);
  EXPECT_EQ(exchange.rows_returned(), 1);
  exchange.fetch(planned, stream, support::plan_view(DType::kF32, {4, 2}),
                 support::plan_view(DType::kF32, {20, 2}));
  EXPECT_EQ(planned.log().traffic("world", Collective::kExchangeRows), (Traffic{1, 8, 7 * 8}));
}

TEST(RowExchange, KnowsWhenItIsACopy) {
  RowExchange exchange;
  exchange.plan(0, {{{0, 4}, {4, 9}}}, {{{0, 9}}});
  EXPECT_TRUE(exchange.is_identity());
  exchange.plan(0, {{{0, 9}}}, {{{0, 8}}});
  EXPECT_FALSE(exchange.is_identity());
  exchange.plan(0, {{{0, 9}}, {}}, {{{0, 9}}, {}});
  EXPECT_FALSE(exchange.is_identity());
}

TEST(RowExchange, TakesTheSameScratchForEveryPlan) {
  SelfCommunicator planned(0, 2);
  const Device plan{DeviceKind::kPlan};
  Stream stream{plan};
  RowExchange exchange;
  exchange.reserve_returned(4);
  std::vector<int64_t> bytes;
  for (const int64_t rows : {int64_t{0}, int64_t{4}}) {
    exchange.plan(0, {{{0, 4}}, {{4, 8}}}, {{{0, 4}}, {{4 - rows, 8}}});
    EXPECT_EQ(exchange.rows_returned(), rows);
    Arena arena(plan, 0);
    exchange.give_back(planned, stream, arena, support::plan_view(DType::kBF16, {4, 100}),
                       support::plan_view(DType::kBF16, {4, 100}));
    bytes.push_back(arena.high_water());
  }
  EXPECT_EQ(bytes[0], bytes[1]);
  EXPECT_EQ(bytes[0], aligned(4 * 100 * 2) + aligned(4 * 100 * 4));
}

TEST(RowExchange, FetchesWhileOthersAreUnderWay) {
  run_ranks(3, [](Communicator& world) {
    Stream stream{support::device()};
    const std::vector<TokenRanges> owned{{{0, 2}}, {{2, 4}}, {{4, 6}}};
    const std::vector<TokenRanges> needed{{{0, 2}}, {{0, 4}}, {{0, 6}}};
    RowExchange exchange;
    exchange.plan(world.rank(), owned, needed);
    const Tensor keys = support::filled(DType::kF32, {2, 1}, world.rank());
    const Tensor values = support::filled(DType::kF32, {2, 1}, -world.rank());
    const Tensor all_keys(DType::kF32, {6, 1});
    const Tensor all_values(DType::kF32, {6, 1});
    Pending first = exchange.start_fetch(world, stream, keys.view(), all_keys);
    Pending second = exchange.start_fetch(world, stream, values.view(), all_values);
    first.wait();
    second.wait();
    stream.synchronize();
    for (size_t i = 0; i < 2 * static_cast<size_t>(world.rank() + 1); ++i) {
      EXPECT_EQ(all_keys.as<float>()[i], static_cast<float>(i / 2));
      EXPECT_EQ(all_values.as<float>()[i], -static_cast<float>(i / 2));
    }
  });
}

TEST(RowExchange, SaysWhatIsWrong) {
  RowExchange exchange;
  support::expect_error(
      [&] {
        exchange.plan(0, {{{0, 4}}, {{6, 8}}}, {{{0, 4}}, {{2, 8}}});
      },
      "row_exchange: token 4 is needed by rank 1, but no rank owns it");
  support::expect_error(
      [&] {
        exchange.plan(0, {{{0, 4}}, {{3, 8}}}, {{{0, 4}}, {{2, 8}}});
      },
      "row_exchange: token 3 is owned by ranks 0 and 1, expected one");
  support::expect_error(
      [&] {
        exchange.plan(0, {{{4, 8}, {0, 4}}}, {{{0, 4}}});
      },
      "row_exchange: the tokens that rank 0 owns have [0, 4) after 8");
  support::expect_error(
      [&] {
        exchange.plan(0, {{{0, 8}}}, {{{0, 4}, {3, 5}}});
      },
      "row_exchange: the tokens that rank 0 needs have [3, 5) after 4");
  support::expect_error(
      [&] {
        exchange.plan(1, {{{0, 8}}}, {{{0, 4}}});
      },
      "row_exchange: rank 1 plans with the owned tokens of 1 ranks");
  SelfCommunicator world;
  Stream stream{support::device()};
  exchange.plan(0, {{{0, 8}}}, {{{0, 4}}});
  const Tensor rows(DType::kF32, {4, 2});
  const Tensor few(DType::kF32, {3, 2});
  const Tensor own(DType::kF32, {8, 2});
  support::expect_error([&] { exchange.fetch(world, stream, rows.view(), rows); },
                        "row_exchange: own rows are [4, 2], expected 8 rows");
  support::expect_error([&] { exchange.fetch(world, stream, own.view(), few); },
                        "row_exchange: needed rows are [3, 2], expected at least 4 rows");
  SelfCommunicator planned(0, 2);
  support::expect_error([&] { exchange.fetch(planned, stream, own.view(), rows); },
                        "row_exchange: planned for 1 ranks, expected 2");
}

}  // namespace
}  // namespace tessera
