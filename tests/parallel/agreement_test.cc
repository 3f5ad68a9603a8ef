#include "parallel/agreement.h"

#include "parallel/thread_communicator.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

TEST(Agreement, EveryRankHasTheText) {
  std::string text = "any byte: ";
  for (int byte = 0; byte < 256; ++byte) text += static_cast<char>(byte);
  for (const int ranks : {1, 3}) {
    run_ranks(ranks, [&](Communicator& world) {
      const int root = world.size() - 1;
      EXPECT_EQ(broadcast_text(world, world.rank() == root ? text : "not this", root), text);
      EXPECT_EQ(broadcast_text(world, "", 0), "");
    });
  }
}

TEST(Agreement, TheLowestRankThatFailedSpeaks) {
  run_ranks(4, [](Communicator& world) {
    EXPECT_FALSE(first_failure(world, std::nullopt));
    const bool fails = world.rank() == 1 || world.rank() == 3;
    const auto failure = failure_of([&] {
      if (fails) throw Error(ExitCode::kUsage, concat("disk ", world.rank(), " is full"));
    });
    EXPECT_EQ(failure.has_value(), fails);
    const std::optional<Failure> first = first_failure(world, failure);
    ASSERT_TRUE(first);
    EXPECT_EQ(first->rank, 1);
    EXPECT_EQ(first->reason, "disk 1 is full") << "without [rank 1/4]";
    EXPECT_EQ(first->code, ExitCode::kUsage);
    EXPECT_EQ(to_text(*first, world), "rank 1: disk 1 is full");
    // One without words is a failure, too.
    std::optional<Failure> silent;
    if (world.rank() == 2) silent = {.reason = "", .code = ExitCode::kBadData};
    EXPECT_EQ(first_failure(world, silent)->rank, 2);
  });
}

TEST(Agreement, ABrokenContractIsNoFailureToReport) {
  support::expect_error([] { (void)failure_of([] { CHECK(false, "one and one is three"); }); },
                        "one and one is three");
}

}  // namespace
}  // namespace tessera
