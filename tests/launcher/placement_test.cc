#include "launcher/placement.h"

#include <gtest/gtest.h>

#include "launcher/life_plan.h"
#include "tests/model/tiny_model.h"

namespace tessera {
namespace {

using Hosts = std::vector<HostSlots>;

TEST(Placement, HostsAreFilledInOrder) {
  EXPECT_EQ(slots_of({{"a", 8}, {"b", 4}}), 12);
  EXPECT_EQ(filled_hosts({{"a", 8}, {"b", 4}, {"c", 4}}, 10), (Hosts{{"a", 8}, {"b", 2}}));
  EXPECT_EQ(filled_hosts({{"a", 8}}, 8), (Hosts{{"a", 8}}));
  EXPECT_THROW(filled_hosts({{"a", 8}}, 9), Error);
}

TEST(Placement, CountsGroupsOnMoreHostsThanTheyNeed) {
  EXPECT_EQ(scattered_groups({{"a", 8}, {"b", 8}}, 4), 0);
  EXPECT_EQ(scattered_groups({{"a", 6}, {"b", 6}}, 4), 1);            // 4..7
  EXPECT_EQ(scattered_groups({{"a", 6}, {"b", 6}, {"c", 4}}, 4), 1);  // 12..15 are all on c
  EXPECT_EQ(scattered_groups({{"a", 4}, {"b", 6}, {"c", 6}}, 4), 1);  // 8..11
  EXPECT_EQ(scattered_groups({{"a", 8}, {"b", 8}}, 16), 0) << "two hosts are what 16 need";
  EXPECT_EQ(scattered_groups({{"a", 4}, {"b", 8}, {"c", 4}}, 16), 1);
}

TEST(Placement, WarnsOfTensorGroupsThatCrossHosts) {
  EXPECT_TRUE(placement_warnings({{"a", 8}, {"b", 8}}, {2, 2, 1, 4}).empty());
  EXPECT_TRUE(placement_warnings({{"a", 6}, {"b", 6}}, {4, 1, 3, 1}).empty());
  EXPECT_EQ(
      placement_warnings({{"a", 6}, {"b", 6}}, {3, 1, 1, 4}),
      (std::vector<std::string>{
          "1 of 3 tensor groups cross hosts, which is slow: ranks 4 to 7 lie on a and b; give "
          "each host a multiple of mesh.tensor = 4 slots"}));
  EXPECT_EQ(placement_warnings({{"a", 2}, {"b", 2}}, {1, 1, 1, 4}),
            (std::vector<std::string>{
                "mesh.tensor is 4, but no host takes more than 2 ranks: every tensor group crosses "
                "hosts, which is slow; take a mesh.tensor of at most 2"}));
}

TEST(Placement, WarnsOfExpertGroupsThatCouldLieCloser) {
  EXPECT_EQ(placement_warnings({{"a", 6}, {"b", 6}}, {3, 4, 1, 1}),
            (std::vector<std::string>{
                "1 of 3 expert groups are on more hosts than they need: ranks 4 to 7 lie on a and "
                "b; give each host a multiple of mesh.expert x mesh.sequence x mesh.tensor = 4 "
                "slots"}));
  EXPECT_EQ(
      placement_warnings({{"a", 4}, {"b", 8}, {"c", 4}}, {1, 16, 1, 1}),
      (std::vector<std::string>{
          "1 of 1 expert groups are on more hosts than they need; give all hosts the same number "
          "of slots, which divides mesh.expert x mesh.sequence x mesh.tensor = 16"}));
}

TrainConfig twelve_sequences() {
  return support::tiny_config({"batch.sequences=12", "batch.micro_sequences=1"});
}

TEST(LifePlan, AsManyRanksKeepTheMesh) {
  const auto life = plan_life(twelve_sequences(), {.ranks = 4, .least_hosts = 3},
                              {{"a", 2}, {"c", 2}});  // a spare host, b, is lost
  ASSERT_TRUE(life);
  EXPECT_EQ(life->hosts, (Hosts{{"a", 2}, {"c", 2}}));
  EXPECT_EQ(life->ranks, 4);
  EXPECT_FALSE(life->mesh);
}

TEST(LifePlan, FewerRanksGetAMeshOfTheirOwn) {
  const JobSize job{.ranks = 6, .least_hosts = 2};
  const auto life = plan_life(twelve_sequences(), job, {{"a", 2}, {"c", 2}});
  ASSERT_TRUE(life);
  EXPECT_EQ(life->ranks, 4);
  ASSERT_TRUE(life->mesh);
  EXPECT_EQ(life->mesh->ranks(), 4);
  EXPECT_FALSE(plan_life(twelve_sequences(), job, {{"a", 5}})) << "one host is too few";
  EXPECT_FALSE(plan_life(twelve_sequences(), job, {}));
}

TEST(LifePlan, LeavesSlotsThatNoMeshCanUse) {
  // 7 blocks of keys, 12 sequences, 2 local heads: no mesh of 5 or 11 ranks.
  const auto life = plan_life(twelve_sequences(), {.ranks = 12, .least_hosts = 1},
                              {{"a", 4}, {"b", 4}, {"c", 3}});
  ASSERT_TRUE(life);
  EXPECT_LT(life->ranks, 11);
  EXPECT_EQ(slots_of(life->hosts), life->ranks);
  EXPECT_EQ(life->mesh->tensor, 1) << "hosts have nothing in common that tensor ranks could share";
}

TEST(LifePlan, OverridesAreArgumentsOfTrain) {
  EXPECT_EQ(mesh_overrides({2, 3, 1, 4}),
            (std::vector<std::string>{"--set", "mesh.data=2", "--set", "mesh.expert=3", "--set",
                                      "mesh.sequence=1", "--set", "mesh.tensor=4"}));
}

}  // namespace
}  // namespace tessera
