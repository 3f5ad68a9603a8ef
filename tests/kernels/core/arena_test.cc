#include "kernels/core/arena.h"

#include <gtest/gtest.h>

#include <cstdint>

#include "tests/support/compare.h"

namespace tessera {
namespace {

/// The allocations of an imaginary step, with scratch that is released half-way.
void run_step(Arena& arena) {
  arena.allocate(DType::kF32, {100}, "x");
  {
    const Arena::Scope scratch(arena);
    arena.allocate(DType::kBF16, {33, 7}, "scratch");
    arena.allocate(DType::kU8, {1}, "more scratch");
  }
  const int64_t mark = arena.mark();
  arena.allocate(DType::kI64, {40}, "y");
  arena.release(mark);
}

TEST(Arena, APlanGivesTheExactSize) {
  Arena plan(Device{DeviceKind::kPlan}, 0);
  run_step(plan);
  EXPECT_EQ(plan.high_water(), 512 + 512 + 256);  // 400, 462 and 1 byte, aligned
  Arena exact(Device{}, plan.high_water());
  run_step(exact);
  EXPECT_EQ(exact.high_water(), plan.high_water());
  support::expect_error(
      [&] {
        Arena short_of_one(Device{}, plan.high_water() - 1);
        run_step(short_of_one);
      },
      "activation arena is full at 'more scratch' [1]: needs 1280 bytes, has 1279");
}

TEST(Arena, LastAllocatedIsFirstReleased) {
  Arena arena(Device{}, 4096);
  const TensorView first = arena.allocate(DType::kF32, {3}, "first");
  const int64_t mark = arena.mark();
  const TensorView second = arena.allocate(DType::kF32, {3}, "second");
  EXPECT_EQ(static_cast<char*>(second.data()) - static_cast<char*>(first.data()),
            Buffer::kAlignment);
  arena.release(mark);
  EXPECT_EQ(arena.allocate(DType::kI32, {5}, "again").data(), second.data());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(second.data()) % Buffer::kAlignment, 0u);
  support::expect_error([&] { arena.release(5000); },
                        "arena: release to 5000 bytes, but only 512 are in use");
  support::expect_error([&] { arena.release(-1); }, "arena: release to -1 bytes");
}

TEST(Arena, APlanHasNoMemory) {
  Arena plan(Device{DeviceKind::kPlan}, 0);
  const TensorView huge = plan.allocate(DType::kF32, {int64_t{1} << 40}, "huge");
  EXPECT_EQ(huge.data(), nullptr);
  EXPECT_EQ(huge.device().kind, DeviceKind::kPlan);
  EXPECT_EQ(plan.high_water(), int64_t{1} << 42);
}

}  // namespace
}  // namespace tessera
