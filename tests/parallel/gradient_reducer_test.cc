#include "parallel/gradient_reducer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "parallel/thread_communicator.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"

namespace tessera {
namespace {

using support::Tensor;

TEST(GradientReducer, AddsAndDoesNotDivide) {
  run_ranks(3, [](Communicator& world) {
    Stream stream{Device{}};
    const uint64_t rank = static_cast<uint64_t>(world.rank());
    const Tensor large = support::random_tensor(DType::kF32, {40000}, rank);
    const Tensor small = support::filled(DType::kF32, {2, 3}, world.rank() + 1);
    GradientReducer reducer(world, {large, small});
    reducer.reduce(stream);
    EXPECT_EQ(support::to_doubles(small.view()), std::vector<double>(6, 6));
    std::vector<double> sums(40000);
    for (uint64_t r = 0; r < 3; ++r) {
      const Tensor part = support::random_tensor(DType::kF32, {40000}, r);
      for (size_t i = 0; i < sums.size(); ++i) sums[i] += part.as<float>()[i];
    }
    support::expect_close(large.view(), sums, 1e-13, "sum");
  });
}

TEST(GradientReducer, TakesF32Only) {
  run_ranks(1, [](Communicator& world) {
    const Tensor half(DType::kBF16, {3});
    support::expect_error([&] { GradientReducer(world, {half}); },
                          "gradient_reducer: a gradient [3] is bf16, expected f32");
  });
}

TEST(GradientNorm, IsThatOfOneLongVector) {
  Stream stream{Device{}, 2};
  const Tensor a = support::random_tensor(DType::kF32, {30001}, 1, 1e3);
  const Tensor b = support::random_tensor(DType::kF32, {7, 11}, 2);
  double squares = 0;
  for (const double x : support::to_doubles(a.view())) squares += x * x;
  for (const double x : support::to_doubles(b.view())) squares += x * x;
  const GradientNorm found = gradient_norm(stream, std::vector<TensorView>{a, b});
  EXPECT_NEAR(found.norm / std::sqrt(squares), 1, 1e-12);
  EXPECT_TRUE(found.finite);
  EXPECT_EQ(gradient_norm(stream, {}).norm, 0);
}

TEST(GradientNorm, SeesEveryElementThatIsNotFinite) {
  Stream stream{Device{}};
  const float largest = std::numeric_limits<float>::max();
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const size_t at : {size_t{0}, size_t{777}, size_t{70000}}) {
    const Tensor gradient = support::filled(DType::kF32, {70001}, largest);
    const std::vector<TensorView> gradients{gradient};
    EXPECT_TRUE(gradient_norm(stream, gradients).finite) << "large is not infinite";
    gradient.as<float>()[at] = -infinity;
    EXPECT_FALSE(gradient_norm(stream, gradients).finite);
    gradient.as<float>()[at] = nan;
    EXPECT_FALSE(gradient_norm(stream, gradients).finite);
  }
}

}  // namespace
}  // namespace tessera
