#include "kernels/core/copy.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "kernels/core/buffer.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

std::vector<int32_t> counted(size_t count) {
  std::vector<int32_t> values(count);
  std::iota(values.begin(), values.end(), 1);
  return values;
}

TEST(Copy, GoesToTheDeviceAlongItAndBack) {
  Stream stream(support::device());
  std::vector<int32_t> values = counted(30);
  const Buffer first(support::device(), 120);
  const Buffer second(support::device(), 120);
  const Buffer back = Buffer::pinned(support::device(), 120);
  copy(stream, {values.data(), DType::kI32, {30}, Device{}}, first.view(DType::kI32, {5, 6}));
  copy(stream, first.view(DType::kI32, {5, 6}), second.view(DType::kI32, {5, 6}));
  copy(stream, second.view(DType::kI32, {5, 6}), back.view(DType::kI32, {30}));
  stream.synchronize();
  const auto found = back.view(DType::kI32, {30}).as<int32_t>();
  EXPECT_EQ(std::vector<int32_t>(found.begin(), found.end()), values);
}

TEST(Copy, ReachesOnlyItsElements) {
  Stream stream(support::device());
  const Buffer data(support::device(), 32);
  const std::vector<int32_t> values = counted(8);
  std::vector<int32_t> back(8);
  const auto host = [](std::vector<int32_t>& x) {
    return TensorView(x.data(), DType::kI32, {8}, Device{});
  };
  copy(stream, {values.data(), DType::kI32, {3}, Device{}}, data.view(DType::kI32, {3}, 8));
  copy(stream, data.view(DType::kI32, {8}), host(back));
  stream.synchronize();
  EXPECT_EQ(back, (std::vector<int32_t>{0, 0, 1, 2, 3, 0, 0, 0}));
}

TEST(Copy, WorksBetweenHostTensorsOnEveryStream) {
  Stream stream(support::device());
  const std::vector<int32_t> values = counted(8);
  std::vector<int32_t> other(8);
  copy(stream, {values.data(), DType::kI32, {8}, Device{}},
       {other.data(), DType::kI32, {8}, Device{}});
  EXPECT_EQ(other, values);
}

TEST(Copy, OfNothingNeedsNoMemory) {
  Stream stream(support::device());
  copy(stream, {nullptr, DType::kF32, {0, 4}, support::device()},
       {nullptr, DType::kF32, {0, 4}, Device{}});
}

TEST(Copy, ChecksSizesAndPlaces) {
  Stream stream(support::device());
  const support::Tensor a(DType::kF32, {2, 3});
  support::expect_error([&] { copy(stream, a, support::Tensor(DType::kF32, {7})); },
                        "copy: to is f32 [7], expected as many elements as from, f32 [2, 3]");
  support::expect_error([&] { copy(stream, a, support::Tensor(DType::kI32, {6})); },
                        "copy: to is i32 [6], expected as many elements as from, f32 [2, 3]");
  support::expect_error([&] { copy(stream, support::plan_view(DType::kF32, {6}), a); },
                        "copy: from [6] is neither in host memory nor on the device of the stream");
}

TEST(Copy, ToTheArenaAndOnTheHost) {
  Stream stream(support::device());
  Arena arena(support::device(), 1024);
  std::vector<int32_t> values = counted(8);
  const TensorView there = to_arena(stream, arena, host_view(values), "there");
  EXPECT_EQ(there.device(), support::device());
  values.assign(8, 0);
  EXPECT_EQ(to_vector<int32_t>(stream, there), counted(8));
  Buffer memory;
  for (const int64_t count : {3, 8, 0}) {
    const auto found = on_host(stream, there.rows(0, count), memory).as<int32_t>();
    EXPECT_EQ(std::vector<int32_t>(found.begin(), found.end()),
              counted(static_cast<size_t>(count)));
  }
  EXPECT_EQ(on_host(stream, host_view(values), memory).data(), values.data());
}

TEST(Copy, OnAPlanOnlyChecks) {
  Stream plan(Device{DeviceKind::kPlan});
  const TensorView many = support::plan_view(DType::kF32, {1 << 20, 1 << 20});
  copy(plan, many, many);
  support::expect_error([&] { copy(plan, many, support::plan_view(DType::kF32, {3})); },
                        "copy: to is f32 [3]");
}

}  // namespace
}  // namespace tessera
