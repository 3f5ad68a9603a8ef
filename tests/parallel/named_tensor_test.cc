#include "parallel/named_tensor.h"

#include <gtest/gtest.h>

#include "tests/support/random_tensor.h"

namespace tessera {
namespace {

TEST(NamedParts, AreOneForEachBlock) {
  const support::Tensor data(DType::kF32, {4, 3});
  const Shard shard = Shard::split({8, 3}, 0, 1, 2, 2);
  const std::vector<NamedTensor> parts = named_parts("x", shard, data);
  ASSERT_EQ(parts.size(), 2u);
  EXPECT_EQ(parts[0].box, (Box{{2, 0}, {2, 3}}));
  EXPECT_EQ(parts[1].box, (Box{{6, 0}, {2, 3}}));
  EXPECT_EQ(parts[1].data.data(), data.view().rows(2, 2).data());
  EXPECT_EQ(parts[1].whole, (Shape{8, 3}));
  EXPECT_EQ(named_parts("y", Shard::replicated({4, 3}), data).size(), 1u);
}

}  // namespace
}  // namespace tessera
