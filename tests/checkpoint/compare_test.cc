#include "checkpoint/compare.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/checkpoint/saved_checkpoint.h"

namespace tessera {
namespace {

using support::save_with;
using support::TemporaryDirectory;
using support::Tensor;

// A checkpoint of one tensor "x".
CheckpointReader saved(const std::filesystem::path& run, const std::string& name,
                       const TensorView& view) {
  const NamedTensor tensor{name, Shard::replicated(view.shape()), view};
  CheckpointContents contents;
  contents.groups = {{TensorKind::kParameter, {&tensor, 1}}};
  CheckpointStore store(run, support::quick_options());
  const SaveReport report = store.save(contents);
  CHECK(report.committed, report.failure);
  return CheckpointReader(report.path);
}

TEST(Compare, TheSameStateOnTwoMeshesIsEqual) {
  const TemporaryDirectory a;
  const TemporaryDirectory b;
  EXPECT_TRUE(compare_checkpoints(CheckpointReader(save_with(1, 10, a.path())),
                                  CheckpointReader(save_with(3, 10, b.path())))
                  .empty());
}

TEST(Compare, FindsTheFirstAndTheLargestDifference) {
  const TemporaryDirectory a;
  const TemporaryDirectory b;
  const Tensor tensor = support::random_tensor(DType::kF32, {4, 5}, 1);
  const CheckpointReader left = saved(a.path(), "x", tensor);
  tensor.as<float>()[7] += 0.5F;
  tensor.as<float>()[12] -= 2;
  const std::vector<TensorDifference> found =
      compare_checkpoints(left, saved(b.path(), "x", tensor));
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].name, "x");
  EXPECT_EQ(found[0].reason, "");
  EXPECT_EQ(found[0].elements, 2);
  EXPECT_EQ(found[0].first, "[1, 2]");
  EXPECT_FLOAT_EQ(static_cast<float>(found[0].first_right - found[0].first_left), 0.5F);
  EXPECT_NEAR(found[0].largest, 2, 1e-6);
}

TEST(Compare, SeesNotANumber) {
  const TemporaryDirectory a;
  const TemporaryDirectory b;
  const Tensor tensor = support::filled(DType::kBF16, {4}, 1);
  const CheckpointReader left = saved(a.path(), "x", tensor);
  tensor.as<BF16>()[1] = from_float<BF16>(std::numeric_limits<float>::quiet_NaN());
  tensor.as<BF16>()[2] = from_float<BF16>(3);
  const auto found = compare_checkpoints(left, saved(b.path(), "x", tensor));
  ASSERT_EQ(found.size(), 1U);
  EXPECT_TRUE(std::isnan(found[0].largest));
}

TEST(Compare, TellsWhatOnlyOneHasOrHasInAnotherShape) {
  const TemporaryDirectory a;
  const TemporaryDirectory b;
  const TemporaryDirectory c;
  const Tensor four = support::filled(DType::kF32, {4}, 1);
  const Tensor five = support::filled(DType::kF32, {5}, 1);
  const CheckpointReader x = saved(a.path(), "x", four);
  const auto names = compare_checkpoints(x, saved(b.path(), "y", four));
  ASSERT_EQ(names.size(), 2U);
  EXPECT_EQ(names[0].reason, "is only in the first");
  EXPECT_EQ(names[1].reason, "is only in the second");
  const auto shapes = compare_checkpoints(x, saved(c.path(), "x", five));
  ASSERT_EQ(shapes.size(), 1U);
  EXPECT_EQ(shapes[0].reason, "is f32 [4] and f32 [5]");
}

}  // namespace
}  // namespace tessera
