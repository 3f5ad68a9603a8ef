#include "runtime/train/gate_samples.h"

#include <gtest/gtest.h>

#include <set>

namespace tessera {
namespace {

TEST(GateSamples, OneInEveryStretchOfPositionsAndInEverySequence) {
  for (const int64_t step : {1, 100, 12345}) {
    const std::vector<GateSample> samples = gate_samples(64, 8, 4096, step);
    ASSERT_EQ(samples.size(), 64u);
    std::set<int64_t> sequences;
    for (int64_t i = 0; i < 64; ++i) {
      EXPECT_EQ(samples[static_cast<size_t>(i)].position / 64, i);
      sequences.insert(samples[static_cast<size_t>(i)].sequence);
    }
    EXPECT_EQ(sequences.size(), 8u);
    EXPECT_EQ(*sequences.rbegin(), 7);
  }
}

TEST(GateSamples, PlacesChangeWithTheStep) {
  std::set<int64_t> places;
  for (int64_t step = 100; step <= 1600; step += 100) {
    places.insert(gate_samples(4, 2, 4096, step)[0].position);
    EXPECT_EQ(gate_samples(4, 2, 4096, step), gate_samples(4, 2, 4096, step));
  }
  EXPECT_GE(places.size(), 15u);
  EXPECT_LT(*places.begin(), 200);
  EXPECT_GT(*places.rbegin(), 800);
}

TEST(GateSamples, NeverMoreThanThereAreTokens) {
  const std::vector<GateSample> samples = gate_samples(64, 2, 5, 3);
  EXPECT_EQ(samples.size(), 10u);
  for (const GateSample& sample : samples) {
    EXPECT_LT(sample.position, 5);
    EXPECT_LT(sample.sequence, 2);
  }
}

}  // namespace
}  // namespace tessera
