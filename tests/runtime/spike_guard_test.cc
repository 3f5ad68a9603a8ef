#include "runtime/train/spike_guard.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/runtime/temporary_directory.h"

namespace tessera {
namespace {

using Verdict = SpikeGuard::Verdict;

/// `count` values of mean 2 and standard deviation exactly 0.5, for both.
SpikeGuard fed(int64_t count) {
  SpikeGuard guard;
  for (int64_t i = 0; i < count; ++i) {
    EXPECT_EQ(guard.judge(i % 2 == 0 ? 1.5 : 2.5, i % 2 == 0 ? 2.5 : 1.5), Verdict::kApply);
  }
  return guard;
}

TEST(SpikeGuard, ActsOnlyWithAFullWindow) {
  EXPECT_EQ(fed(127).judge(1e9, 1e9), Verdict::kApply);
  EXPECT_EQ(fed(128).judge(1e9, 2), Verdict::kLossSpike);
  EXPECT_EQ(fed(128).judge(2, 1e9), Verdict::kGradientSpike);
}

TEST(SpikeGuard, SixStandardDeviationsAboveTheMean) {
  EXPECT_EQ(fed(128).judge(4.99, 4.99), Verdict::kApply);
  EXPECT_EQ(fed(128).judge(5.01, 2), Verdict::kLossSpike);
  EXPECT_EQ(fed(128).judge(2, 5.01), Verdict::kGradientSpike);
  EXPECT_EQ(fed(128).judge(-1e9, 0), Verdict::kApply);  // below is no spike
}

TEST(SpikeGuard, ValuesThatNeverChangeAreNoSpike) {
  for (const double value : {0.1, 0.7, 2.3, 5.5567, 0.0}) {
    SpikeGuard guard;
    for (int i = 0; i < 300; ++i) EXPECT_EQ(guard.judge(value, value), Verdict::kApply) << value;
  }
}

TEST(SpikeGuard, NaNIsNeverAppliedAndNeverBlinds) {
  const double nan = std::nan("");
  const double infinite = std::numeric_limits<double>::infinity();
  SpikeGuard guard = fed(128);
  for (int i = 0; i < 300; ++i) {
    EXPECT_EQ(guard.judge(nan, 2), Verdict::kNotFinite);
    EXPECT_EQ(guard.judge(2, infinite), Verdict::kNotFinite);
  }
  EXPECT_EQ(guard.state(), fed(128).state());
  EXPECT_EQ(guard.judge(5.01, 2), Verdict::kLossSpike);
}

TEST(SpikeGuard, AcceptsALastingChange) {
  SpikeGuard guard = fed(128);
  int skipped = 0;
  while (guard.judge(10, 2) != Verdict::kApply) ASSERT_LT(++skipped, 10);
  EXPECT_GE(skipped, 1);
}

TEST(SpikeGuard, ComesBackExactlyFromItsState) {
  for (const int64_t count : {0, 1, 127, 128, 200}) {
    SpikeGuard guard = fed(count);
    (void)guard.judge(1.0 / 3, 0x1p-1040);
    SpikeGuard restored;
    restored.restore(guard.state());
    EXPECT_EQ(restored.state(), guard.state());
    for (int i = 0; i < 200; ++i) {
      const double loss = 2 + std::sin(i) * (i % 50);
      ASSERT_EQ(restored.judge(loss, 1 / (1.0 + i)), guard.judge(loss, 1 / (1.0 + i)));
    }
  }
}

TEST(SpikeGuard, DamagedStateIsBadDataAndChangesNothing) {
  SpikeGuard guard = fed(128);
  const std::string good = guard.state();
  for (const std::string& bad :
       {std::string(), std::string("x"), std::string("0 3 1 2\n0 0\n"), std::string("0 129\n0 0\n"),
        std::string("128 0\n0 0\n"), std::string("0 -1\n0 0\n"), std::string("0 1 1z\n0 0\n"),
        std::string("0 0\n"), good.substr(0, good.size() / 2)}) {
    EXPECT_TRUE(thrown_by([&] { guard.restore(bad); }).starts_with("65: spike guard: ")) << bad;
  }
  EXPECT_EQ(guard.state(), good);
}

}  // namespace
}  // namespace tessera
