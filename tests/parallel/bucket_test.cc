#include "parallel/bucket.h"

#include <gtest/gtest.h>

namespace tessera {
namespace {

TEST(Bucket, IsPaddedToEqualPartsOfWholeUnits) {
  for (const int ranks : {1, 2, 3, 8, 384}) {
    for (const int64_t elements : {1, 16, 48, 127, 128, 129, 100000}) {
      const int64_t padded = padded_for(elements, ranks);
      EXPECT_GE(padded, elements);
      EXPECT_LT(padded, elements + ranks * Bucket::kUnit);
      EXPECT_EQ(padded % (ranks * Bucket::kUnit), 0);
    }
  }
  EXPECT_EQ(padded_for(0, 8), 0);
}

TEST(Bucket, KnowsItsPart) {
  std::vector<float> values(96);
  std::vector<float> gradients(96);
  const Bucket bucket{.values = {values.data(), DType::kF32, {96}, Device{}},
                      .gradients = {gradients.data(), DType::kF32, {96}, Device{}},
                      .owned_begin = 32,
                      .owned_length = 32};
  EXPECT_EQ(bucket.owned_end(), 64);
  EXPECT_EQ(bucket.owned_values().data(), values.data() + 32);
  EXPECT_EQ(bucket.owned_gradients().data(), gradients.data() + 32);
  EXPECT_EQ(bucket.owned_gradients().shape(), (Shape{32}));
}

}  // namespace
}  // namespace tessera
