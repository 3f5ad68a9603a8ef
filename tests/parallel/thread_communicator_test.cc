#include "parallel/thread_communicator.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/parallel/collective_checks.h"
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
    const auto half = world.split(std::vector<int>{0, 0, 1, 1});
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
    Stream stream{Device{}};
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
          Stream stream{Device{}};
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
      "all_to_all: rank 1 sends 1 rows, receive_rows expects 2");
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
