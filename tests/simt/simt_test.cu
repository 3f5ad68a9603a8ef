#include <gtest/gtest.h>

#include "kernels/core/buffer.h"
#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/ptx.cuh"
#include "kernels/core/shared_memory.cuh"
#include "tests/support/compare.h"

// What the interpreter must find: each rule is broken once, on purpose, beside a kernel that keeps
// it. These kernels would be wrong, or undefined, on a GPU too.

namespace tessera::gpu {
namespace {

using support::expect_error;
using support::Tensor;

Stream& stream() {
  static Stream only(support::device());
  return only;
}
float* numbers(const Tensor& x) {
  return x.as<float>().data();
}

__global__ void copy_numbers(float* y, const float* x, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    y[i] = x[i];
  }
}

TEST(Simt, FindsAReadBeyondTheEnd) {
  const Tensor x(DType::kF32, {100});
  const Tensor y(DType::kF32, {101});
  launch(stream(), copy_numbers, 1, 32, 0, numbers(y), numbers(x), 100);
  expect_error([&] { launch(stream(), copy_numbers, 1, 32, 0, numbers(y), numbers(x), 101); },
               "reads 4 bytes of global memory at 400 of an allocation of 400");
  // The message names kernel, block, lane and line.
  expect_error([&] { launch(stream(), copy_numbers, 1, 32, 0, numbers(y), numbers(x), 101); },
               "copy_numbers, block (0, 0, 0): lane (4, 0, 0)");
  expect_error([&] { launch(stream(), copy_numbers, 1, 32, 0, numbers(y), numbers(x), 101); },
               "near simt_test.cu:");
}

TEST(Simt, FindsAWriteBeyondTheEndAndMemoryOfTheHost) {
  const Tensor x(DType::kF32, {101});
  const Tensor y(DType::kF32, {100});
  expect_error([&] { launch(stream(), copy_numbers, 1, 32, 0, numbers(y), numbers(x), 101); },
               "writes 4 bytes of global memory at 400 of an allocation of 400");
  std::vector<float> host(100);
  expect_error([&] { launch(stream(), copy_numbers, 1, 32, 0, numbers(y), host.data(), 100); },
               "reads 4 bytes of memory that is not the device's");
  expect_error([&] { launch(stream(), copy_numbers, 1, 32, 0, host.data(), numbers(x), 100); },
               "writes 4 bytes of memory that is not the device's");
}

TEST(SimtDeathTest, CodeOfTheHostMayNotTouchTheDevice) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const Buffer buffer(Device{DeviceKind::kGpu}, 400);
  const auto x = buffer.view(DType::kF32, {100}).as<float>();
  launch(stream(), copy_numbers, 1, 32, 0, x.data(), x.data(), 100);
  EXPECT_DEATH(x[5] = 1, "code of the host touches memory of the device");
}

/// Turns the numbers around by way of shared memory.
__global__ void reverse(float* y, const float* x, int taken, bool barrier) {
  SharedMemory shared;
  float* const kept = shared.take<float>(taken);
  const int i = static_cast<int>(threadIdx.x);
  kept[i] = x[i];
  if (barrier) __syncthreads();
  y[i] = kept[static_cast<int>(blockDim.x) - 1 - i];
}

TEST(Simt, FindsAMissingBarrier) {
  const Tensor x = support::random_tensor(DType::kF32, {64}, 1);
  const Tensor y(DType::kF32, {64});
  launch(stream(), reverse, 1, 64, 256, numbers(y), numbers(x), 64, true);
  EXPECT_EQ(y.as<float>()[0], x.as<float>()[63]);
  // The first lane reads what nothing wrote; the last one what another lane did.
  expect_error([&] { launch(stream(), reverse, 1, 64, 256, numbers(y), numbers(x), 64, false); },
               "of shared memory at 252 that nothing wrote");
}

TEST(Simt, FindsSharedMemoryThatWasNotAskedFor) {
  const Tensor x(DType::kF32, {64});
  const Tensor y(DType::kF32, {64});
  expect_error([&] { launch(stream(), reverse, 1, 64, 128, numbers(y), numbers(x), 64, true); },
               "writes 4 bytes of shared memory at 128, the block asked for 128");
  expect_error(
      [&] { launch(stream(), reverse, 1, 64, 300 * 1024, numbers(y), numbers(x), 64, true); },
      "307200 bytes of shared memory, a block has 232448");
}

/// Lane 0 writes, then all read; later lane 0 writes again.
__global__ void tell(float* y, bool first_barrier, bool second_barrier) {
  SharedMemory shared;
  float* const told = shared.take<float>(1);
  if (threadIdx.x == 0) told[0] = 1;
  if (first_barrier) __syncthreads();
  const float heard = told[0];
  if (second_barrier) __syncthreads();
  if (threadIdx.x == 0) told[0] = 2;
  y[threadIdx.x] = heard;
}

TEST(Simt, FindsRacesInSharedMemory) {
  const Tensor y(DType::kF32, {64});
  launch(stream(), tell, 1, 64, 16, numbers(y), true, true);
  expect_error([&] { launch(stream(), tell, 1, 64, 16, numbers(y), false, true); },
               "that lane 0 wrote with no barrier in between");
  // The lanes run one after another, so lane 1 reads what lane 0 just wrote again.
  expect_error([&] { launch(stream(), tell, 1, 64, 16, numbers(y), true, false); },
               "that lane 0 wrote with no barrier in between");
}

/// A write after a read: lane i reads slot i + 1 of its warp, then writes slot i.
__global__ void shift(float* y, bool barrier) {
  SharedMemory shared;
  float* const slots = shared.take<float>(32);
  const int i = static_cast<int>(threadIdx.x);
  slots[i] = static_cast<float>(i);
  __syncwarp();
  const float next = slots[(i + 1) % 32];
  if (barrier) __syncwarp();
  slots[i] = next;
  y[i] = next;
}

TEST(Simt, OrdersTheLanesOfAWarp) {
  const Tensor y(DType::kF32, {32});
  launch(stream(), shift, 1, 32, 128, numbers(y), true);
  EXPECT_EQ(y.as<float>()[31], 0);
  expect_error([&] { launch(stream(), shift, 1, 32, 128, numbers(y), false); },
               "with no barrier in between");
}

__global__ void warp_to_warp(float* y) {
  SharedMemory shared;
  float* const slot = shared.take<float>(1);
  if (threadIdx.x == 0) slot[0] = 3;
  __syncwarp();  // not enough for the other warp
  y[threadIdx.x] = slot[0];
}

TEST(Simt, AWarpBarrierIsNotOneOfTheBlock) {
  const Tensor y(DType::kF32, {64});
  launch(stream(), warp_to_warp, 1, 32, 16, numbers(y));
  expect_error([&] { launch(stream(), warp_to_warp, 1, 64, 16, numbers(y)); },
               "lane (63, 0, 0) reads 4 bytes of shared memory at 0 that lane 0 wrote");
}

__global__ void half_a_barrier(float* y, bool leave) {
  if (threadIdx.x >= 32 && leave) return;
  if (threadIdx.x < 32) __syncthreads();
  y[threadIdx.x] = 1;
}

TEST(Simt, FindsBarriersThatSomeLanesMiss) {
  const Tensor y(DType::kF32, {64});
  for (const bool leave : {false, true}) {
    expect_error([&] { launch(stream(), half_a_barrier, 1, 64, 0, numbers(y), leave); },
                 "not all lanes reach the same barrier: from lane 0: __syncthreads, from lane 32: "
                 "ended");
  }
}

__global__ void half_a_shuffle(float* y) {
  float value = static_cast<float>(threadIdx.x);
  if (threadIdx.x < 16) value = __shfl_xor_sync(kWholeWarp, value, 1);
  y[threadIdx.x] = value;
}

TEST(Simt, FindsWarpOperationsThatSomeLanesMiss) {
  const Tensor y(DType::kF32, {32});
  expect_error([&] { launch(stream(), half_a_shuffle, 1, 32, 0, numbers(y)); },
               "from lane 0: __shfl_xor_sync, from lane 16: ended");
}

__global__ void write_one_slot(float* y, bool atomic) {
  if (atomic) {
    atomicAdd(y, 1.0f);
  } else {
    y[0] = static_cast<float>(blockIdx.x);
  }
}

TEST(Simt, FindsRacesBetweenBlocks) {
  const Tensor y(DType::kF32, {1});
  launch(stream(), write_one_slot, 1, 1, 0, numbers(y), false);
  expect_error([&] { launch(stream(), write_one_slot, 2, 1, 0, numbers(y), false); },
               "writes 4 bytes of global memory at 0 of 4 that another lane wrote");
  y.as<float>()[0] = 0;
  launch(stream(), write_one_slot, 3, 32, 0, numbers(y), true);
  EXPECT_EQ(y.as<float>()[0], 96);
}

/// The last block to come adds up what all wrote.
__global__ void sum_by_last_block(float* y, float* parts, unsigned* arrived, bool fence) {
  parts[blockIdx.x] = 1;
  if (fence) __threadfence();
  if (atomicAdd(arrived, 1u) != gridDim.x - 1) return;
  float sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += parts[i];
  y[0] = sum;
}

TEST(Simt, AFenceAndAnAtomicOrderBlocks) {
  const Tensor y(DType::kF32, {1});
  const Tensor parts(DType::kF32, {5});
  const Tensor arrived(DType::kI32, {2});
  auto* const counters = reinterpret_cast<unsigned*>(arrived.as<int32_t>().data());
  launch(stream(), sum_by_last_block, 5, 1, 0, numbers(y), numbers(parts), counters, true);
  EXPECT_EQ(y.as<float>()[0], 5);
  expect_error(
      [&] {
        launch(stream(), sum_by_last_block, 5, 1, 0, numbers(y), numbers(parts), counters + 1,
               false);
      },
      "that another lane wrote with no barrier in between");
}

__global__ void copy_by_async(float* y, const float* x, bool wait) {
  SharedMemory shared;
  float* const kept = shared.take<float>(128);
  const int at = 4 * static_cast<int>(threadIdx.x);
  copy_async(kept + at, x + at, at < 64);
  close_copies();
  if (wait) wait_for_copies<0>();
  for (int i = 0; i < 4; ++i) y[at + i] = kept[at + i];
}

TEST(Simt, AnAsynchronousCopyIsThereAfterTheWait) {
  const Tensor x = support::random_tensor(DType::kF32, {128}, 2);
  const Tensor y(DType::kF32, {128});
  launch(stream(), copy_by_async, 1, 32, 512, numbers(y), numbers(x), true);
  EXPECT_EQ(y.as<float>()[63], x.as<float>()[63]);
  EXPECT_EQ(y.as<float>()[64], 0);  // not valid: zero
  expect_error([&] { launch(stream(), copy_by_async, 1, 32, 512, numbers(y), numbers(x), false); },
               "of shared memory at 0 that nothing wrote");
}

/// A wait does not cover copies whose group is still open.
__global__ void write_over_a_copy(const float* x, bool close) {
  SharedMemory shared;
  float* const kept = shared.take<float>(128);
  const int at = 4 * static_cast<int>(threadIdx.x);
  copy_async(kept + at, x + at, true);
  if (close) close_copies();
  wait_for_copies<0>();
  kept[at] = 1;
}

TEST(Simt, FindsAWriteToWhereACopyIsUnderWay) {
  const Tensor x = support::random_tensor(DType::kF32, {128}, 2);
  launch(stream(), write_over_a_copy, 1, 32, 512, numbers(x), true);
  expect_error([&] { launch(stream(), write_over_a_copy, 1, 32, 512, numbers(x), false); },
               "writes 4 bytes of shared memory at 0 to which an asynchronous copy is under way");
}

__global__ void shuffle_all(int* y) {
  const int lane = static_cast<int>(threadIdx.x);
  y[lane] = __shfl_sync(kWholeWarp, lane, 5);
  y[32 + lane] = __shfl_xor_sync(kWholeWarp, lane, 9);
  y[64 + lane] = __shfl_up_sync(kWholeWarp, lane, 3, 8);
  y[96 + lane] = __shfl_down_sync(kWholeWarp, lane, 3, 8);
  y[128 + lane] = static_cast<int>(__ballot_sync(kWholeWarp, lane % 3 == 0));
  y[160 + lane] = __reduce_add_sync(kWholeWarp, lane);
  y[192 + lane] = __reduce_min_sync(kWholeWarp, lane - 7);
  y[224 + lane] = static_cast<int>(__match_any_sync(kWholeWarp, lane % 5));
}

TEST(Simt, WarpFunctionsDoWhatTheManualSays) {
  const Tensor y(DType::kI32, {8, 32});
  launch(stream(), shuffle_all, 1, 32, 0, y.as<int32_t>().data());
  uint32_t thirds = 0;
  for (int lane = 0; lane < 32; lane += 3) thirds |= 1u << lane;
  for (int lane = 0; lane < 32; ++lane) {
    const auto at = [&](int row) { return y.as<int32_t>()[static_cast<size_t>(32 * row + lane)]; };
    EXPECT_EQ(at(0), 5);
    EXPECT_EQ(at(1), lane ^ 9);
    EXPECT_EQ(at(2), lane % 8 < 3 ? lane : lane - 3);
    EXPECT_EQ(at(3), lane % 8 > 4 ? lane : lane + 3);
    EXPECT_EQ(static_cast<uint32_t>(at(4)), thirds);
    EXPECT_EQ(at(5), 496);
    EXPECT_EQ(at(6), -7);
    EXPECT_EQ(at(7) >> lane & 1, 1);
    EXPECT_EQ(__builtin_popcount(static_cast<unsigned>(at(7))), lane % 5 < 2 ? 7 : 6);
  }
}

/// c [16, 8] = a [16, 16] b, with b as [16, 8] (transposed loads) or as [8, 16] (plain loads).
__global__ void small_product(float* c, const BF16* a, const BF16* b, bool b_is_transposed) {
  SharedMemory shared;
  BF16* const kept_a = shared.take<BF16>(256);
  BF16* const kept_b = shared.take<BF16>(256);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) kept_a[i] = a[i];
  for (int i = lane; i < 256; i += 32) kept_b[i] = i < 128 ? b[i] : BF16{};
  __syncwarp();
  uint32_t part_a[4];
  uint32_t part_b[4];
  load_matrices(part_a, kept_a + lane % 16 * 16 + lane / 16 * 8);
  if (b_is_transposed) {
    // [8, 16]: matrices 0 and 1 are its columns 0-7 and 8-15, of which a lane needs row g.
    load_matrices(part_b, kept_b + lane % 8 * 16 + lane / 8 % 2 * 8);
  } else {
    load_transposed(part_b, kept_b + lane % 16 * 8);
  }
  float sums[4] = {};
  multiply_bf16(sums, part_a, part_b[0], part_b[1]);
  const int row = lane / 4;
  const int column = 2 * (lane % 4);
  for (int i = 0; i < 4; ++i) c[(row + 8 * (i / 2)) * 8 + column + i % 2] = sums[i];
}

TEST(Simt, MatrixProductsOfAWarpFollowTheirLayouts) {
  const Tensor a = support::random_tensor(DType::kBF16, {16, 16}, 3);
  for (const bool transposed : {false, true}) {
    const Shape shape = transposed ? Shape{8, 16} : Shape{16, 8};
    const Tensor b = support::random_tensor(DType::kBF16, shape, 4);
    const Tensor c(DType::kF32, {16, 8});
    launch(stream(), small_product, 1, 32, 1024, numbers(c), a.as<BF16>().data(),
           b.as<BF16>().data(), transposed);
    const auto left = support::to_doubles(a);
    const auto right = support::to_doubles(b);
    std::vector<double> expected(128);
    for (size_t i = 0; i < 16; ++i) {
      for (size_t j = 0; j < 8; ++j) {
        for (size_t k = 0; k < 16; ++k) {
          expected[8 * i + j] += left[16 * i + k] * right[transposed ? 16 * j + k : 8 * k + j];
        }
      }
    }
    support::expect_close(c, expected, 1e-12, "c");
  }
}

/// c [16, 8] = a [16, 8] b [8, 8] in tf32.
__global__ void small_tf32_product(float* c, const float* a, const float* b) {
  const int lane = static_cast<int>(threadIdx.x);
  const int group = lane / 4;
  const int t = lane % 4;
  uint32_t part[4];
  for (int i = 0; i < 4; ++i) part[i] = to_tf32(a[(group + 8 * (i % 2)) * 8 + t + 4 * (i / 2)]);
  float sums[4] = {};
  multiply_tf32(sums, part, to_tf32(b[t * 8 + group]), to_tf32(b[(t + 4) * 8 + group]));
  for (int i = 0; i < 4; ++i) c[(group + 8 * (i / 2)) * 8 + 2 * t + i % 2] = sums[i];
}

TEST(Simt, Tf32ProductsRoundTheirFactors) {
  const Tensor a = support::random_tensor(DType::kF32, {16, 8}, 5);
  const Tensor b = support::random_tensor(DType::kF32, {8, 8}, 6);
  const Tensor c(DType::kF32, {16, 8});
  launch(stream(), small_tf32_product, 1, 32, 0, numbers(c), numbers(a), numbers(b));
  const auto left = support::to_doubles(a);
  const auto right = support::to_doubles(b);
  std::vector<double> exact(128);
  for (size_t i = 0; i < 128; ++i) {
    for (size_t k = 0; k < 8; ++k) exact[i] += left[i / 8 * 8 + k] * right[8 * k + i % 8];
  }
  const double found = support::error(support::to_doubles(c), exact);
  EXPECT_LT(found, 1e-6);   // factors of 11 bits
  EXPECT_GT(found, 1e-10);  // but not of 24
}

}  // namespace
}  // namespace tessera::gpu
