#include "kernels/core/tensor_view.h"

#include <gtest/gtest.h>

#include <array>
#include <sstream>

#include "tests/support/compare.h"

namespace tessera {
namespace {

TEST(Shape, CountsFromBothEnds) {
  const Shape shape{2, 3, 5};
  EXPECT_EQ(shape.rank(), 3);
  EXPECT_EQ(shape[0], 2);
  EXPECT_EQ(shape[-1], 5);
  EXPECT_EQ(shape[-3], 2);
  EXPECT_EQ(shape.elements(), 30);
  EXPECT_EQ(shape.with(-1, 7), (Shape{2, 3, 7}));
  EXPECT_EQ(shape.with(0, 0).elements(), 0);
  EXPECT_NE(shape, (Shape{2, 3}));
  EXPECT_NE((Shape{2, 1}), (Shape{2}));
  std::ostringstream text;
  text << shape << Shape{};
  EXPECT_EQ(text.str(), "[2, 3, 5][]");
}

TEST(TensorView, RowsAndReshapeShareTheMemory) {
  std::array<float, 12> data{};
  const TensorView view(data.data(), DType::kF32, {4, 3}, Device{});
  view.rows(2, 1).as<float>()[1] = 5;
  EXPECT_EQ(data[7], 5);
  EXPECT_EQ(view.reshape({2, 6}).as<float>()[7], 5);
  EXPECT_EQ(view.rows(4, 0).elements(), 0);
  const ConstTensorView constant = view;
  EXPECT_EQ(constant.rows(2, 2).data(), &data[6]);
  EXPECT_EQ(constant.bytes(), 48);
}

TEST(TensorView, RefusesWhatIsNotThere) {
  std::array<float, 12> data{};
  const TensorView view(data.data(), DType::kF32, {4, 3}, Device{});
  support::expect_error([&] { view.rows(3, 2); }, "rows [3, 5) are outside of [4, 3]");
  support::expect_error([&] { view.rows(-1, 2); }, "rows [-1, 1) are outside of [4, 3]");
  support::expect_error([&] { view.rows(1, -1); }, "are outside of [4, 3]");
  support::expect_error([&] { view.reshape({5, 2}); }, "cannot reshape [4, 3] to [5, 2]");
  support::expect_error([&] { view.as<int32_t>(); }, "tensor [4, 3] is f32, expected i32");
}

TEST(TensorView, NoTensorIsEmpty) {
  const TensorView none;
  EXPECT_TRUE(none.empty());
  EXPECT_EQ(none.elements(), 0);
  EXPECT_EQ(none.bytes(), 0);
}

}  // namespace
}  // namespace tessera
