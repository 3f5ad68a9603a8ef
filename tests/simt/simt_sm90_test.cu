#include <gtest/gtest.h>

#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/ptx_sm90.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/core/tensor_map.cuh"
#include "kernels/core/wgmma_sm90.cuh"
#include "tests/support/compare.h"

// What the interpreter must find of Hopper's instructions: as simt_test.cu. A product of two
// matrices 64 x 64 in every form, whose steps are left out one by one.

namespace tessera::gpu {
namespace {

using support::expect_error;
using support::random_tensor;
using support::Tensor;

constexpr int kSize = 64;
constexpr uint32_t kBoxBytes = kSize * kSize * 2;
constexpr int64_t kSharedBytes = 2048 + 2 * int64_t{kBoxBytes};

Stream& stream() {
  static Stream only(support::device());
  return only;
}

/// What is left out.
enum class Fault : uint8_t {
  kNone,
  kNoShow,  // of the barrier
  kNoWaitForBoxes,
  kReadABoxEarly,
  kMoreBytes,  // than are expected
  kFewerBytes,
  kMoreArrivals,
  kNoOpen,  // wgmma.fence
  kSumsEarly,
  kWriteEarly,  // to where the product reads
  kCopyEarly,
  kOtherWarpsWait,  // is not known
  kNoShowToUnits,
  kMisaligned
};

struct Forms {
  bool a_along_rows;
  bool b_along_columns;
  bool a_in_registers;
  bool a_by_lanes;  // written to shared memory by lanes, not copied
};

struct Shared {
  uint64_t* full;
  unsigned char* a;
  unsigned char* b;

  __device__ static Shared take() {
    SharedMemory shared;
    uint64_t* const full = shared.take<uint64_t>(2);
    auto* const rest = shared.take<unsigned char>(1024 + 2 * static_cast<int>(kBoxBytes));
    const uint32_t beyond = address_in_shared(rest) % 1024;
    unsigned char* const a = rest + (1024 - beyond) % 1024;
    return {full, a, a + kBoxBytes};
  }
  __device__ BF16& of_a(int line, int at) const {
    return reinterpret_cast<BF16*>(a)[line * kSize + (at / 8 ^ line % 8) * 8 + at % 8];
  }
};

__device__ void multiply(float (&c)[kSize / 2], const Shared& s, const Forms& f,
                         const BF16* a_rows) {
  const int warp = static_cast<int>(threadIdx.x) % 128 / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const uint64_t a = matrix_descriptor(s.a, 16);
  const uint64_t b = matrix_descriptor(s.b, 16);
  for (int k = 0; k < kSize / 16; ++k) {
    const uint64_t b_step = b + static_cast<uint64_t>(f.b_along_columns ? 128 : 2) * k;
    const uint64_t a_step = a + static_cast<uint64_t>(f.a_along_rows ? 128 : 2) * k;
    if (f.a_in_registers) {
      uint32_t part[4];
      for (int i = 0; i < 4; ++i) {
        const int row = 16 * warp + lane / 4 + i % 2 * 8;
        const int at = 16 * k + lane % 4 * 2 + i / 2 * 8;
        part[i] = a_rows[row * kSize + at].bits | uint32_t{a_rows[row * kSize + at + 1].bits} << 16;
      }
      f.b_along_columns ? multiply_64<kSize, true>(c, part, b_step, k > 0)
                        : multiply_64<kSize, false>(c, part, b_step, k > 0);
    } else if (f.a_along_rows) {
      f.b_along_columns ? multiply_64<kSize, true, true>(c, a_step, b_step, k > 0)
                        : multiply_64<kSize, true, false>(c, a_step, b_step, k > 0);
    } else {
      f.b_along_columns ? multiply_64<kSize, false, true>(c, a_step, b_step, k > 0)
                        : multiply_64<kSize, false, false>(c, a_step, b_step, k > 0);
    }
  }
}

__device__ void copy_boxes(const Shared& s, const Forms& f, Fault fault, const CUtensorMap& a_map,
                           const CUtensorMap& b_map) {
  const uint32_t boxes = f.a_by_lanes ? 1 : 2;
  const uint32_t wrong = fault == Fault::kMoreBytes ? 16u : fault == Fault::kFewerBytes ? -16u : 0u;
  arrive_and_expect(s.full, boxes * kBoxBytes + wrong);
  if (fault == Fault::kMoreArrivals) arrive(s.full);
  if (!f.a_by_lanes) copy_box(s.a, &a_map, s.full, 0, 0, 0);
  copy_box(s.b + (fault == Fault::kMisaligned ? 128 : 0), &b_map, s.full, 0, 0, 0);
}

/// c = a b: lane 0 copies, the second warp group multiplies.
__global__ void product(float* c, const BF16* a, Forms f, Fault fault,
                        const __grid_constant__ CUtensorMap a_map,
                        const __grid_constant__ CUtensorMap b_map) {
  const Shared s = Shared::take();
  const int i = static_cast<int>(threadIdx.x) - 128;
  if (threadIdx.x == 0) {
    start_barrier(s.full, 1);
    start_barrier(s.full + 1, fault == Fault::kOtherWarpsWait ? 1 : 4);
    if (fault != Fault::kNoShow) show_barriers();
  }
  if (f.a_by_lanes && i >= 0) {
    for (int k = i; k < kSize * kSize; k += 128) s.of_a(k / kSize, k % kSize) = a[k];
    if (fault != Fault::kNoShowToUnits) show_to_units();
  }
  __syncthreads();
  if (i < 0) {
    if (threadIdx.x > 0) return;
    copy_boxes(s, f, fault, a_map, b_map);
    if (fault != Fault::kCopyEarly) wait_for_phase(s.full + 1, 0);
    arrive_and_expect(s.full, kBoxBytes);
    copy_box(s.b, &b_map, s.full, 0, 0, 0);
    return;
  }
  if (fault == Fault::kReadABoxEarly) c[i] = s.of_a(0, i % kSize).bits;
  if (fault != Fault::kNoWaitForBoxes) wait_for_phase(s.full, 0);
  float sums[kSize / 2];
  hold_sums(sums);
  if (fault != Fault::kNoOpen) open_products();
  multiply(sums, s, f, a);
  close_products();
  hold_sums(sums);
  if (fault == Fault::kSumsEarly) c[i] = sums[i % 32];
  if (fault == Fault::kWriteEarly) s.of_a(i % kSize, 0) = BF16{};
  wait_for_products<0>();
  hold_sums(sums);
  if (i % (fault == Fault::kOtherWarpsWait ? 128 : kWarpSize) == 0) arrive(s.full + 1);
  const int row = i / kWarpSize * 16 + i % kWarpSize / 4;
  for (int j = 0; j < kSize / 2; ++j) {
    c[(row + j / 2 % 2 * 8) * kSize + j / 4 * 8 + i % 4 * 2 + j % 2] = sums[j];
  }
}

Tensor run(const Forms& f, Fault fault, const Tensor& a, const Tensor& b) {
  Tensor c(DType::kF32, {kSize, kSize});
  const Extents3 all{kSize, kSize, 1};
  const CUtensorMap a_map = tensor_map(a, all, all, "test");
  const CUtensorMap b_map = tensor_map(b, all, all, "test");
  launch(stream(), product, 1, 256, kSharedBytes, c.as<float>().data(), a.as<BF16>().data(), f,
         fault, a_map, b_map);
  return c;
}

TEST(SimtSm90, ProductsOfAWarpGroupFollowTheirLayouts) {
  const Tensor a = random_tensor(DType::kBF16, {kSize, kSize}, 3);
  const Tensor b = random_tensor(DType::kBF16, {kSize, kSize}, 4);
  const auto left = support::to_doubles(a);
  const auto right = support::to_doubles(b);
  for (const bool a_along_rows : {false, true}) {
    for (const bool b_along_columns : {false, true}) {
      for (const bool a_in_registers : {false, true}) {
        if (a_in_registers && a_along_rows) continue;
        std::vector<double> expected(kSize * kSize);
        for (size_t i = 0; i < expected.size() * kSize; ++i) {
          const size_t row = i / kSize / kSize;
          const size_t column = i / kSize % kSize;
          const size_t k = i % kSize;
          expected[i / kSize] += left[a_along_rows ? k * kSize + row : row * kSize + k] *
                                 right[b_along_columns ? k * kSize + column : column * kSize + k];
        }
        const Forms forms{a_along_rows, b_along_columns, a_in_registers, false};
        support::expect_close(run(forms, Fault::kNone, a, b), expected, 1e-6, "c");
      }
    }
  }
}

TEST(SimtSm90, FindsWhatTheHardwareForbids) {
  const Tensor a = random_tensor(DType::kBF16, {kSize, kSize}, 3);
  const Tensor b = random_tensor(DType::kBF16, {kSize, kSize}, 4);
  const auto expect = [&](Fault fault, const char* sentence) {
    expect_error([&] { run({false, true, false, false}, fault, a, b); }, sentence);
  };
  expect(Fault::kNoShow, "has no fence.mbarrier_init after its init");
  expect(Fault::kNoWaitForBoxes, "to which a box is copied, whose mbarrier was not waited for");
  expect(Fault::kReadABoxEarly, "to which a box is copied, whose mbarrier was not waited for");
  expect(Fault::kMoreBytes, "a phase of parity 0 of the mbarrier in shared memory at 0");
  expect(Fault::kFewerBytes, "16 bytes more than its phase 0 expected");
  expect(Fault::kMoreArrivals, "more than 1 arrivals in phase 0");
  expect(Fault::kNoOpen, "no wgmma.fence before the first product of a group");
  expect(Fault::kSumsEarly, "touches sums of wgmma that were not waited for");
  expect(Fault::kWriteEarly, "that wgmma.mma_async of lane 128 reads, whose end is not known");
  expect(Fault::kCopyEarly, "to which a box is copied, whose mbarrier was not waited for");
  expect(Fault::kOtherWarpsWait, "that wgmma.mma_async of lane 128 reads, whose end is not known");
  expect(Fault::kMisaligned, "expected one aligned to 1024");
}

TEST(SimtSm90, UnitsSeeWhatLanesWroteAfterAFence) {
  const Tensor a = random_tensor(DType::kBF16, {kSize, kSize}, 3);
  const Tensor b = random_tensor(DType::kBF16, {kSize, kSize}, 4);
  const Forms copied{false, true, false, false};
  const Forms written{false, true, false, true};
  support::expect_close(run(written, Fault::kNone, a, b),
                        support::to_doubles(run(copied, Fault::kNone, a, b)), 0, "c");
  expect_error([&] { run(written, Fault::kNoShowToUnits, a, b); },
               "wrote, with no fence.proxy.async in between");
}

/// Two warps hand numbers to two others by named barriers, and get word that they were read.
__global__ void hand_over(float* y, bool wait, bool answer) {
  SharedMemory shared;
  float* const slots = shared.take<float>(64);
  const int i = static_cast<int>(threadIdx.x);
  for (int round = 0; round < 3; ++round) {
    if (i < 64) {
      if (answer && round > 0) sync_named(2, 128);
      slots[i] = static_cast<float>(i + round);
      arrive_named(1, 128);
    } else {
      if (wait) sync_named(1, 128);
      y[64 * round + i - 64] = slots[127 - i];
      if (answer && round < 2) arrive_named(2, 128);
    }
  }
}

TEST(SimtSm90, NamedBarriersOrderTheirWarps) {
  const Tensor y(DType::kF32, {192});
  const auto start = [&](bool wait, bool answer) {
    launch(stream(), hand_over, 1, 128, 256, y.as<float>().data(), wait, answer);
  };
  start(true, true);
  EXPECT_EQ(y.as<float>()[0], 63);
  EXPECT_EQ(y.as<float>()[191], 2);
  expect_error([&] { start(false, true); }, "with no barrier in between");
  expect_error([&] { start(true, false); }, "with no barrier in between");
}

/// A line to shared memory, a box from there.
__global__ void copy_and_store(const float* x, bool early,
                               const __grid_constant__ CUtensorMap map) {
  const Shared s = Shared::take();
  if (threadIdx.x != 0) return;
  start_barrier(s.full, 1);
  show_barriers();
  arrive_and_expect(s.full, kBoxBytes);
  copy_line(s.a, x, kBoxBytes, s.full);
  wait_for_phase(s.full, 0);
  store_box(&map, s.a, 0, 0, 0);
  close_stores();
  if (!early) wait_for_stores<0>();
  s.of_a(0, 0) = BF16{};
}

TEST(SimtSm90, BoxesAreStoredFromSharedMemory) {
  const Tensor x = random_tensor(DType::kBF16, {kSize, kSize}, 5);
  const Tensor y(DType::kBF16, {50, kSize});
  const CUtensorMap map = tensor_map(y, {kSize, 50, 1}, {kSize, kSize, 1}, "test");
  const auto* const from = reinterpret_cast<const float*>(x.as<BF16>().data());
  launch(stream(), copy_and_store, 1, 32, kSharedBytes, from, false, map);
  for (size_t i = 0; i < 50 * kSize; ++i) {
    const size_t line = i / kSize;
    EXPECT_EQ(y.as<BF16>()[i].bits,
              x.as<BF16>()[line * kSize + (i % kSize / 8 ^ line % 8) * 8 + i % 8].bits);
  }
  expect_error([&] { launch(stream(), copy_and_store, 1, 32, kSharedBytes, from, true, map); },
               "that cp.async.bulk.tensor of lane 0 reads, whose end is not known here");
}

}  // namespace
}  // namespace tessera::gpu
