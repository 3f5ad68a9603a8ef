#include "parallel/ordered_reduction.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/core/build.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"

namespace tessera {
namespace {

using support::Tensor;

TEST(ReduceInOrder, AddsFromTheFirstToTheLast) {
  // 1e8 + 1 is 1e8 in f32, so only this order gives 1.
  const std::array<float, 3> parts{1e8f, -1e8f, 1.0f};
  float out = 0;
  reduce_in_order(DType::kF32, Reduction::kSum,
                  std::array<const void*, 3>{&parts[0], &parts[1], &parts[2]}, 1, &out);
  EXPECT_EQ(out, 1.0f);
  reduce_in_order(DType::kF32, Reduction::kSum,
                  std::array<const void*, 3>{&parts[0], &parts[2], &parts[1]}, 1, &out);
  EXPECT_EQ(out, 0.0f);
}

TEST(ReduceInOrder, MayWriteOverAnyOfItsParts) {
  for (size_t over = 0; over < 3; ++over) {
    std::vector<Tensor> parts;
    for (uint64_t seed = 0; seed < 3; ++seed) {
      parts.push_back(support::random_tensor(DType::kF32, {2500}, seed));
    }
    std::vector<double> sums(2500);
    for (const Tensor& part : parts) {
      for (size_t i = 0; i < sums.size(); ++i) {
        sums[i] = static_cast<float>(sums[i]) + part.as<float>()[i];
      }
    }
    const std::vector<const void*> views{parts[0].view().data(), parts[1].view().data(),
                                         parts[2].view().data()};
    reduce_in_order(DType::kF32, Reduction::kSum, views, 2500, parts[over].view().data());
    EXPECT_EQ(support::to_doubles(parts[over].view()), sums);
  }
}

TEST(ReduceInOrder, RoundsBf16Once) {
  // Each 2^-8 alone would be lost next to 1: bf16 has 8 bits of mantissa.
  const Tensor one = support::filled(DType::kBF16, {1}, 1);
  const Tensor small = support::filled(DType::kBF16, {1}, 0x1p-8);
  const Tensor out(DType::kBF16, {1});
  const void* data = small.view().data();
  reduce_in_order(DType::kBF16, Reduction::kSum,
                  std::vector<const void*>{one.view().data(), data, data, data, data}, 1,
                  out.view().data());
  EXPECT_EQ(support::to_doubles(out.view())[0], 1 + 4 * 0x1p-8);
}

TEST(ReduceInOrder, KeepsNansAndWrapsWholeNumbers) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::array<float, 2> values{1, nan};
  for (const size_t first : {size_t{0}, size_t{1}}) {
    float out = 0;
    reduce_in_order(DType::kF32, Reduction::kMax,
                    std::array<const void*, 2>{&values[first], &values[1 - first]}, 1, &out);
    EXPECT_TRUE(std::isnan(out)) << first;
  }
  const std::array<int32_t, 2> large{std::numeric_limits<int32_t>::max(), 1};
  int32_t out = 0;
  reduce_in_order(DType::kI32, Reduction::kSum, std::array<const void*, 2>{&large[0], &large[1]}, 1,
                  &out);
  EXPECT_EQ(out, std::numeric_limits<int32_t>::min());
}

TEST(ReduceInOrder, RefusesWhatItCannotAdd) {
  support::expect_error([] { reduce_in_order(DType::kF32, Reduction::kSum, {}, 0, nullptr); },
                        "reduce_in_order: there are no parts");
  const uint8_t byte = 0;
  support::expect_error(
      [&] {
        reduce_in_order(DType::kU8, Reduction::kSum, std::array<const void*, 1>{&byte}, 0, nullptr);
      },
      "reduce_in_order: dtype is u8, expected f32, bf16, i32 or i64");
}

// Starts that are not multiples of 16 bytes, ends that are not whole packs, more ranks than are
// read ahead; a NaN, and counts that wrap around.
TEST(ReduceInOrder, OnAGpuHasTheSameBits) {
  if constexpr (kCudaBuilt) {
    Stream stream(support::device());
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kI32, DType::kI64}) {
      const bool whole = dtype == DType::kI32 || dtype == DType::kI64;
      for (const int ranks : {2, 4, 7}) {
        const int64_t each = 2048;
        const Tensor all = support::random_tensor(dtype, {ranks, each}, 5, whole ? 1.2e9 : 1.0);
        if (dtype == DType::kF32) all.as<float>()[100] = std::numeric_limits<float>::quiet_NaN();
        for (const int64_t first : {0, 1, 8}) {
          for (const int64_t count : {int64_t{0}, int64_t{1}, int64_t{2035}}) {
            for (const Reduction reduction : {Reduction::kSum, Reduction::kMax}) {
              const auto at = [&](int r) {
                return static_cast<char*>(all.view().data()) + (r * each + first) * size_of(dtype);
              };
              std::vector<const void*> parts;
              for (int r = 0; r < ranks; ++r) parts.push_back(at(r));
              const Tensor expected(dtype, {each});
              reduce_in_order(dtype, reduction, parts, count, expected.view().data());
              const Tensor own = support::copy_of(all.view().rows(1, 1));
              const Tensor found(dtype, {each});
              gpu::reduce_in_order(
                  stream, dtype, reduction,
                  {.others = at(0),
                   .stride = each * size_of(dtype),
                   .own = static_cast<char*>(own.view().data()) + first * size_of(dtype),
                   .rank = 1,
                   .ranks = ranks},
                  count, found.view().data());
              stream.synchronize();
              support::expect_same_bits(found.view(), expected.view(),
                                        concat(name_of(dtype), ", ", ranks, " ranks"));
            }
          }
        }
      }
    }
  } else {
    GTEST_SKIP() << "this build has no CUDA backend";
  }
}

}  // namespace
}  // namespace tessera
