#include "parallel/thread_communicator.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/parallel/collective_checks.h"
#include "tests/parallel/exchange_checks.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"

namespace tessera {
namespace {

using support::Tensor;

TEST(RunRanks, GivesEveryThreadItsRank) {
  std::vector<std::atomic<int>> seen(5);
  run_ranks(5, [&](Communicator& world) {
    EXPECT_EQ(world.size(), 5);
    EXPECT_EQ(rank_prefix(), concat("[rank ", world.rank(), "/5] "));
    ++seen[static_cast<size_t>(world.rank())];
  });
  for (const auto& count : seen) EXPECT_EQ(count, 1);
  support::expect_error([] { run_ranks(0, [](Communicator&) {}); },
                        "run_ranks: ranks is 0, expected at least 1");
}

TEST(RunRanks, ARankThatThrowsEndsTheWaitOfTheOthers) {
  std::atomic<int> told{0};
  const auto body = [&](Communicator& world) {
    world.barrier();
    if (world.rank() == 2) throw std::runtime_error("rank 2 gives up");
    support::expect_error([&] { world.barrier(); },
                          "barrier: rank 2 has failed, so this exchange cannot take place");
    ++told;
  };
  try {
    run_ranks(4, body);
    ADD_FAILURE() << "nothing was thrown";
  } catch (const std::runtime_error& e) {
    EXPECT_STREQ(e.what(), "rank 2 gives up");
  }
  EXPECT_EQ(told, 3);
}

TEST(RunRanks, AFailureReachesGroupsThatTheRankIsNotIn) {
  const auto body = [](Communicator& world) {
    const auto half = world.split(std::vector<int>{0, 0, 1, 1}, "half");
    if (world.rank() == 3) throw std::runtime_error("rank 3 gives up");
    for (int i = 0; i < 3; ++i) {
      if (half->rank() == 0) half->barrier();
      half->barrier();
    }
  };
  EXPECT_THROW(run_ranks(4, body), std::runtime_error);
}

TEST(RunRanks, ARankThatReturnsEarlyIsNamed) {
  support::expect_error(
      [] {
        run_ranks(3, [](Communicator& world) {
          if (world.rank() != 1) world.barrier();
        });
      },
      "barrier: rank 1 has returned without taking part in it");
}

TEST(RunRanks, DifferentExchangesAreNamed) {
  run_ranks(3, [](Communicator& world) {
    Stream stream{support::device()};
    const Tensor data(DType::kF32, {4});
    const auto mixed = [&] {
      if (world.rank() == 2) return world.barrier();
      world.broadcast(stream, data, 0);
    };
    support::expect_error(mixed, "ranks 0 and 2: they meet in broadcast and barrier");
    const Tensor uneven(DType::kF32, {world.rank() == 1 ? 5 : 4});
    support::expect_error([&] { world.all_reduce(stream, uneven, Reduction::kSum); },
                          "all_reduce: ranks 0 and 1: they have f32 [4] and f32 [5]");
    support::expect_error(
        [&] { world.broadcast(stream, data, world.rank() % 2); },
        "broadcast: ranks 0 and 1: they disagree about the reduction or the root");
    // After an error that all ranks got, they can go on.
    world.barrier();
  });
}

TEST(RunRanks, CountsThatDisagreeAreNamed) {
  support::expect_error(
      [] {
        run_ranks(2, [](Communicator& world) {
          Stream stream{support::device()};
          const Tensor send(DType::kF32, {4, 3});
          const Tensor receive(DType::kF32, {4, 3});
          const std::vector<int64_t> sent{1, 1};
          const std::vector<int64_t> received{1, world.rank() == 0 ? 2 : 1};
          if (world.rank() == 0) {
            world.all_to_all(stream, send.view(), sent, receive, received);
          } else {
            world.all_to_all(stream, send.view(), sent, receive, sent);
            world.barrier();
          }
        });
      },
      "all_to_all on world: rank 1 sent 1 rows, rank 0 expects 2");
}

TEST(RunRanks, TransfersThatDisagreeAreNamed) {
  run_ranks(2, [](Communicator& world) {
    Stream stream{support::device()};
    const Tensor from(DType::kF32, {9, 3});
    const Tensor to(DType::kF32, {9, 3});
    const auto exchange = [&](const std::vector<RowTransfer>& sends,
                              const std::vector<RowTransfer>& receives) {
      const bool first = world.rank() == 0;
      world.exchange_rows(stream, from.view(), first ? std::vector<RowTransfer>{} : sends, to,
                          first ? receives : std::vector<RowTransfer>{});
    };
    const auto expect = [&](const std::string& sentence, const std::vector<RowTransfer>& sends,
                            const std::vector<RowTransfer>& receives) {
      if (world.rank() == 1) return exchange(sends, receives);
      support::expect_error([&] { exchange(sends, receives); },
                            "exchange_rows on world: " + sentence);
    };
    expect("rank 1 sent 3 rows, rank 0 expects 2", {{0, 1, 1}, {0, 5, 3}}, {{1, 2, 1}, {1, 4, 2}});
    expect("rank 1 sends more transfers than rank 0 receives", {{0, 1, 1}, {0, 5, 3}}, {{1, 2, 1}});
    expect("rank 1 sends fewer transfers than rank 0 receives", {}, {{1, 2, 1}});
  });
}

TEST(RunRanks, WaitsInDifferentOrdersAreNamed) {
  run_ranks(2, [](Communicator& world) {
    Stream stream{support::device()};
    const Tensor a(DType::kF32, {4});
    const Tensor b(DType::kF32, {4});
    Pending first = world.start_all_reduce(stream, a, Reduction::kSum);
    Pending second = world.start_all_reduce(stream, b, Reduction::kSum);
    for (Pending* pending :
         {world.rank() == 0 ? &first : &second, world.rank() == 0 ? &second : &first}) {
      support::expect_error([&] { pending->wait(); },
                            "all_reduce: ranks 0 and 1: they wait for exchange");
    }
  });
}

TEST(RunRanks, AnExceptionDoesNotWaitForWhatIsUnderWay) {
  std::atomic<bool> told{false};
  const auto body = [&](Communicator& world) {
    Stream stream{support::device()};
    const Tensor data(DType::kF32, {4});
    Pending pending = world.start_all_reduce(stream, data, Reduction::kSum);
    if (world.rank() == 1) throw std::runtime_error("rank 1 gives up");
    support::expect_error([&] { pending.wait(); }, "all_reduce: rank 1 has failed");
    told = true;
  };
  EXPECT_THROW(run_ranks(2, body), std::runtime_error);
  EXPECT_TRUE(told);
}

TEST(RunRanks, APendingThatIsDroppedIsWaitedFor) {
  run_ranks(2, [](Communicator& world) {
    Stream stream{support::device()};
    const Tensor data = support::filled(DType::kF32, {2}, world.rank() + 1);
    {
      const Pending pending = world.start_all_reduce(stream, data, Reduction::kSum);
      EXPECT_TRUE(pending.active());
      EXPECT_EQ(data.as<float>()[0], static_cast<float>(world.rank() + 1));
    }
    stream.synchronize();
    EXPECT_EQ(data.as<float>()[0], 3);
  });
}

TEST(RunRanks, LongExchangesAreUnderWay) {
  run_ranks(2, check_pending_in_chunks);
}

TEST(RunRanks, RepeatsToTheBit) {
  std::vector<uint64_t> first(4);
  std::vector<uint64_t> second(4);
  for (std::vector<uint64_t>* digests : {&first, &second}) {
    run_ranks(4, [&](Communicator& world) {
      (*digests)[static_cast<size_t>(world.rank())] = exchange_digest(world);
    });
  }
  EXPECT_EQ(first, second);
}

}  // namespace
}  // namespace tessera
