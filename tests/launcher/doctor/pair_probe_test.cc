#include "launcher/doctor/pair_probe.h"

#include <gtest/gtest.h>

#include <mutex>
#include <set>

#include "parallel/thread_communicator.h"

namespace tessera {
namespace {

TEST(PairProbe, EveryPairMeetsOnceAndNobodyMeetsTwoAtOnce) {
  for (int ranks = 1; ranks <= 17; ++ranks) {
    std::set<std::pair<int, int>> met;
    for (int round = 0; round < rounds_of(ranks); ++round) {
      for (int rank = 0; rank < ranks; ++rank) {
        const int partner = partner_of(rank, round, ranks);
        if (partner < 0) continue;
        ASSERT_LT(partner, ranks);
        ASSERT_NE(partner, rank);
        ASSERT_EQ(partner_of(partner, round, ranks), rank) << rank << " of " << ranks;
        if (rank > partner) continue;
        EXPECT_TRUE(met.insert({rank, partner}).second);
      }
    }
    EXPECT_EQ(met.size(), static_cast<size_t>(ranks * (ranks - 1) / 2)) << ranks;
  }
}

std::string probed(int ranks) {
  std::mutex mutex;
  std::string text;
  run_ranks(ranks, [&](Communicator& world) {
    probe_pairs(world, "host" + std::to_string(world.rank()), [&](const std::string& line) {
      const std::lock_guard lock(mutex);
      text += line + "\n";
    });
  });
  return text;
}

TEST(PairProbe, MeasuresEveryPair) {
  const std::vector<PairResult> pairs = parse_pairs(probed(3));
  ASSERT_EQ(pairs.size(), 3u);
  std::set<std::string> names;
  for (const PairResult& pair : pairs) {
    names.insert(pair.first + " " + pair.second);
    EXPECT_TRUE(pair.measured);
    EXPECT_GT(pair.figures.latency, 0);
    EXPECT_LT(pair.figures.latency, 1e8);
    EXPECT_GT(pair.figures.bandwidth, 0);
    // One clock: what is measured is known to half a round trip.
    EXPECT_LE(std::abs(pair.figures.skew), pair.figures.latency * 1.01 + 1e-6);
  }
  EXPECT_EQ(names, (std::set<std::string>{"host0 host1", "host0 host2", "host1 host2"}));
  EXPECT_TRUE(parse_pairs(probed(1)).empty());
}

TEST(PairProbe, LinesAreReadInAnyOrderAndAmongOthers) {
  const std::vector<PairResult> pairs = parse_pairs(
      "pairs: begin 1 0\n"
      "a warning of the library\n"
      "pairs: end 0 1 2e-05 1.5e+09 -3.5\n"
      "pairs: rank 0 on a\n"
      "pairs: begin 0 1\n"
      "pairs: rank 1 on b\n"
      "pairs: end 0 1 1e-05 1.2e+09 -3\n"
      "pairs: begin 2 1\n"
      "pairs: begin 1 2\n"
      "pairs: begin 0 2\n"
      "pairs: end 0\n"
      "pairs:\n");
  ASSERT_EQ(pairs.size(), 2u);
  EXPECT_EQ(pairs[0].first, "a");
  EXPECT_EQ(pairs[0].second, "b");
  EXPECT_TRUE(pairs[0].measured);
  EXPECT_EQ(pairs[0].figures.latency, 1e-5);
  EXPECT_EQ(pairs[0].figures.bandwidth, 1.5e9);
  EXPECT_EQ(pairs[0].figures.skew, -3) << "of the shorter round trip";
  EXPECT_EQ(pairs[1].first, "b");
  EXPECT_EQ(pairs[1].second, "rank 2");
  EXPECT_FALSE(pairs[1].measured);
}

}  // namespace
}  // namespace tessera
