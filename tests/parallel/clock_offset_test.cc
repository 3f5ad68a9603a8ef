#include "parallel/clock_offset.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstdlib>

#include "parallel/self_communicator.h"
#include "parallel/thread_communicator.h"

namespace tessera {
namespace {

// Rank r reads a clock that is `ahead(r)` nanoseconds ahead of the real one.
HostClock shifted(int64_t ahead, uint64_t identity) {
  return {.now = [ahead] { return monotonic_nanoseconds() + ahead; }, .identity = identity};
}

TEST(ClockOffset, FindsTheOffsetWithinItsError) {
  // Months of difference, in both directions.
  const std::vector<int64_t> ahead{5'000'000'123, -17'000'000'000'000'001, 77,
                                   9'000'000'000'000'000};
  run_ranks(4, [&](Communicator& world) {
    const auto own = static_cast<size_t>(world.rank());
    const HostClock clock = shifted(ahead[own], own + 1);
    const int64_t before = clock.now();
    const ClockOffset offset = measure_clock_offset(world, clock);
    const int64_t truth = ahead[0] - ahead[own];
    EXPECT_LE(std::abs(offset.to_root - truth), offset.error) << "rank " << own;
    EXPECT_LE(offset.error, offset.worst_error);
    EXPECT_EQ(offset.clocks, 4);
    EXPECT_LE(offset.origin, clock.now() + offset.to_root + offset.error);
    EXPECT_LE(std::abs(offset.origin - (before + truth)), 60'000'000'000);
    if (own == 0) {
      EXPECT_EQ(offset.to_root, 0);
      EXPECT_EQ(offset.error, 0);
    } else {
      EXPECT_GT(offset.error, 0);
    }
  });
}

TEST(ClockOffset, RanksOfOneClockAgreeExactly) {
  std::array<std::atomic<int64_t>, 6> found{};
  run_ranks(6, [&](Communicator& world) {
    // Ranks 0, 2, 4 are on one host; 1, 3, 5 on another.
    const bool far = world.rank() % 2 == 1;
    const ClockOffset offset =
        measure_clock_offset(world, shifted(far ? 1'000'000 : 0, far ? 8 : 7));
    found[static_cast<size_t>(world.rank())] = offset.to_root;
    EXPECT_EQ(offset.clocks, 2);
    if (far) return;
    EXPECT_EQ(offset.to_root, 0);
    EXPECT_EQ(offset.error, 0);
  });
  EXPECT_NE(found[1], 0);
  EXPECT_EQ(found[1], found[3]);
  EXPECT_EQ(found[1], found[5]);
}

TEST(ClockOffset, SaysWhenAClockHasJumped) {
  run_ranks(2, [](Communicator& world) {
    std::atomic<int64_t> time{monotonic_nanoseconds()};
    const bool broken = world.rank() == 1;
    const HostClock clock{.now = [&] { return time += broken ? -1'000'000'000 : 1; },
                          .identity = broken ? 2u : 1u};
    EXPECT_GT(measure_clock_offset(world, clock).worst_error, 10'000'000'000);
  });
}

TEST(ClockOffset, OneRankHasOneClock) {
  SelfCommunicator world;
  const ClockOffset offset = measure_clock_offset(world, monotonic_clock());
  EXPECT_EQ(offset.to_root, 0);
  EXPECT_EQ(offset.worst_error, 0);
  EXPECT_EQ(offset.clocks, 1);
  EXPECT_NE(monotonic_clock().identity, 0u);
  EXPECT_EQ(monotonic_clock().identity, monotonic_clock().identity);
}

}  // namespace
}  // namespace tessera
