#include "kernels/int4_dot.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/kernels/int4_values.h"

// The parts of the CPU's products; tests/kernels/int4_matmul_test.cc has whole ones.

namespace tessera {
namespace {

using support::Int4;
using support::int4_values;

constexpr int64_t kRun = Int4Weights::kRun;

class Int4Dot : public testing::Test {
 protected:
  /// Numbers of one row in the order of the codes.
  template <class T>
  static std::vector<T> in_order(const std::vector<double>& x) {
    std::vector<T> to(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      const auto byte = static_cast<int64_t>(i % kRun % (kRun / 2));
      const bool upper = i % kRun >= kRun / 2;
      const int64_t from = int4_number(byte) + (upper ? kRun / 2 : 0);
      to[i] = from_float<T>(static_cast<float>(x[i / kRun * kRun + static_cast<size_t>(from)]));
    }
    return to;
  }

  const uint8_t* codes() const { return w_.view().codes.as<uint8_t>().data(); }
  const BF16* scales() const { return w_.view().scales.as<BF16>().data(); }

  Int4 w_{support::random_tensor(DType::kF32, {1, 1, 20 * kRun}, 1).view()};
  std::vector<double> values_ = int4_values(w_.view());
  std::vector<double> x_ =
      support::to_doubles(support::random_tensor(DType::kBF16, {1, 20 * kRun}, 2));
};

TEST_F(Int4Dot, UnpacksTheNumbers) {
  if (support::device().kind == DeviceKind::kGpu) GTEST_SKIP() << "of the CPU";
  const std::vector<float> expected = in_order<float>(values_);
  for (int64_t run = 0; run < 20; ++run) {
    float found[kRun];
    cpu::Int4Codes(codes() + run * kRun / 2)
        .unpack(broadcast(to_float(scales()[2 * run])), broadcast(to_float(scales()[2 * run + 1])),
                found);
    for (int64_t i = 0; i < kRun; ++i) {
      EXPECT_NEAR(found[i], expected[static_cast<size_t>(run * kRun + i)], 1e-6);
    }
  }
}

template <class T>
double dot(const uint8_t* codes, const BF16* scales, const std::vector<T>& numbers) {
  std::vector<float> sums;
  for (size_t i = 0; i < numbers.size(); ++i) {
    if (i % kRun == 0) sums.push_back(0);
    sums.back() += to_float(numbers[i]);
  }
  return cpu::int4_dot<1>(codes, scales, numbers.data(), sums.data(),
                          static_cast<int64_t>(numbers.size()))[0];
}

// 20 runs are sixteen at a time and four behind them.
TEST_F(Int4Dot, MultipliesAndAdds) {
  if (support::device().kind == DeviceKind::kGpu) GTEST_SKIP() << "of the CPU";
  double expected = 0;
  double size = 0;
  for (size_t i = 0; i < x_.size(); ++i) {
    expected += values_[i] * x_[i];
    size += values_[i] * x_[i] * values_[i] * x_[i];
  }
  EXPECT_NEAR(dot(codes(), scales(), in_order<float>(x_)), expected, 1e-6 * std::sqrt(size));
  EXPECT_NEAR(dot(codes(), scales(), in_order<BF16>(x_)), expected, 1e-4 * std::sqrt(size));
}

}  // namespace
}  // namespace tessera
