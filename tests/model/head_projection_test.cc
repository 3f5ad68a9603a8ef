#include "model/head_projection.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/support/compare.h"

namespace tessera {
namespace {

TEST(HeadShare, EveryLocalHeadHasOneRankWhateverTheRanks) {
  for (const int64_t groups : {1, 3, 7, 8}) {
    for (const int64_t group_heads : {1, 2, 8}) {
      for (const int parts : {1, 2, 3, 8}) {
        if (groups * group_heads < parts) continue;
        int64_t next = 0;
        for (int part = 0; part < parts; ++part) {
          const HeadShare share = split_heads(1, groups, group_heads, part, parts);
          EXPECT_EQ(share.first_head, next);
          next += share.heads;
          // Of 8 heads each the ranks differ by one head at most.
          EXPECT_LE(share.heads, (groups * group_heads + parts - 1) / parts);
          // Its groups are those of its first to its last head.
          EXPECT_EQ(share.first_group(), share.first_head / group_heads);
          EXPECT_EQ(share.first_group() + share.groups() - 1, (next - 1) / group_heads);
          EXPECT_EQ(share.heads_before(), share.first_head - share.first_group() * group_heads);
        }
        EXPECT_EQ(next, groups * group_heads);
      }
    }
  }
}

TEST(HeadShare, SevenGroupsOverEightRanksAreSevenHeadsEach) {
  for (int part = 0; part < 8; ++part) {
    const HeadShare share = split_heads(1, 7, 8, part, 8);
    EXPECT_EQ(share.heads, 7);
    EXPECT_FALSE(share.whole_groups());
  }
  EXPECT_TRUE(split_heads(0, 8, 8, 3, 8).whole_groups());
}

TEST(HeadShare, RefusesMoreRanksThanHeads) {
  support::expect_error([] { split_heads(1, 1, 2, 0, 3); },
                        "attention: 2 heads of local groups cannot be split over 3 tensor ranks");
}

/// The shards of a layer's local heads on every tensor rank, and of its global heads.
void declare(ParameterStore& store, int part, int parts) {
  const HeadProjection::Options options{.hidden = 6,
                                        .heads = 8,
                                        .kv_heads = 4,
                                        .head_dim = 4,
                                        .rope_base = 10000,
                                        .output_gate = true,
                                        .sink_logit = true,
                                        .dtype = DType::kF32,
                                        .init_std = 1,
                                        .out_init_std = 1};
  const HeadProjection global(store, "a", options, all_heads(0, 1, 2));
  const HeadProjection local(store, "a", options, split_heads(1, 3, 2, part, parts));
}

TEST(HeadProjection, PartsOfAParameterHoldEachElementOnceOrAsReplicas) {
  for (const int parts : {1, 2, 3, 4}) {
    std::map<std::string, std::vector<int>> holders;
    for (int part = 0; part < parts; ++part) {
      ParameterStore store;
      declare(store, part, parts);
      for (const Parameter& parameter : store.all()) {
        auto& count = holders[parameter.name];
        count.resize(static_cast<size_t>(parameter.shard.whole.elements()));
        // A replicated part counts once, on the first rank.
        if (parameter.placement == Placement::kReplicated && part > 0) continue;
        for_each_run(parameter.shard, [&](const ShardRun& run) {
          for (int64_t i = 0; i < run.count; ++i) ++count[static_cast<size_t>(run.whole + i)];
        });
      }
    }
    EXPECT_EQ(holders.size(), 6u);
    for (const auto& [name, count] : holders) {
      EXPECT_EQ(count, std::vector<int>(count.size(), 1)) << name << ", " << parts << " ranks";
    }
  }
}

}  // namespace
}  // namespace tessera
