#include "kernels/core/buffer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "tests/support/compare.h"

namespace tessera {
namespace {

TEST(Buffer, StartsAlignedAndZero) {
  const Buffer buffer(Device{}, 1000);
  const TensorView bytes = buffer.view(DType::kU8, {1000});
  EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes.data()) % Buffer::kAlignment, 0u);
  const auto values = bytes.as<uint8_t>();
  EXPECT_TRUE(std::all_of(values.begin(), values.end(), [](uint8_t x) { return x == 0; }));
}

TEST(Buffer, ViewsMustFit) {
  const Buffer buffer(Device{}, 100);
  EXPECT_EQ(buffer.view(DType::kF32, {5, 5}).elements(), 25);
  EXPECT_EQ(buffer.view(DType::kF32, {1}, 96).data(),
            static_cast<char*>(buffer.view(DType::kU8, {1}).data()) + 96);
  support::expect_error([&] { buffer.view(DType::kF32, {26}); },
                        "view of 104 bytes at 0 does not fit in a buffer of 100");
  support::expect_error([&] { buffer.view(DType::kU8, {1}, 100); },
                        "view of 1 bytes at 100 does not fit in a buffer of 100");
  support::expect_error([&] { buffer.view(DType::kU8, {1}, -1); }, "view of 1 bytes at -1");
  support::expect_error([] { Buffer(Device{}, -1); }, "buffer of -1 bytes");
}

TEST(Buffer, MovesTakeTheMemoryAlong) {
  Buffer first(Device{}, 64);
  void* memory = first.view(DType::kU8, {64}).data();
  Buffer second(std::move(first));
  EXPECT_EQ(second.view(DType::kU8, {64}).data(), memory);
  EXPECT_EQ(first.bytes(), 0);
  Buffer third;
  third = std::move(second);
  EXPECT_EQ(third.view(DType::kU8, {64}).data(), memory);
  EXPECT_EQ(third.bytes(), 64);
}

TEST(Buffer, APlanHasASizeAndNoMemory) {
  const Buffer buffer(Device{DeviceKind::kPlan}, int64_t{1} << 50);
  EXPECT_EQ(buffer.bytes(), int64_t{1} << 50);
  EXPECT_EQ(buffer.view(DType::kF32, {1 << 20}, 1 << 20).data(), nullptr);
}

TEST(Buffer, PinnedMemoryIsTheHosts) {
  Buffer buffer = Buffer::pinned(support::device(), 1000);
  EXPECT_EQ(buffer.device(), Device{});
  EXPECT_EQ(buffer.bytes(), 1000);
  const auto values = buffer.view(DType::kU8, {1000}).as<uint8_t>();
  EXPECT_TRUE(std::all_of(values.begin(), values.end(), [](uint8_t x) { return x == 0; }));
  Buffer other = Buffer::pinned(Device{}, 10);
  std::swap(buffer, other);
  EXPECT_EQ(other.view(DType::kU8, {1000}).data(), values.data());
  EXPECT_EQ(Buffer::pinned(support::device(), 0).bytes(), 0);
  const Buffer plan = Buffer::pinned(Device{DeviceKind::kPlan}, int64_t{1} << 50);
  EXPECT_EQ(plan.view(DType::kU8, {1}).data(), nullptr);
}

TEST(Aligned, RoundsUp) {
  EXPECT_EQ(aligned(0), 0);
  EXPECT_EQ(aligned(1), Buffer::kAlignment);
  EXPECT_EQ(aligned(Buffer::kAlignment), Buffer::kAlignment);
  EXPECT_EQ(aligned(Buffer::kAlignment + 1), 2 * Buffer::kAlignment);
}

}  // namespace
}  // namespace tessera
