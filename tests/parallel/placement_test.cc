#include "parallel/placement.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "parallel/bucket.h"
#include "parallel/self_communicator.h"
#include "parallel/shard.h"
#include "parallel/thread_communicator.h"
#include "tests/parallel/meshes.h"

namespace tessera {
namespace {

const std::vector<Placement> kAll{Placement::kReplicated, Placement::kTensor, Placement::kExpert};

TEST(Placement, SumsOverEveryAxisThatDoesNotShard) {
  for (const Placement placement : kAll) {
    const PlacementRule rule = rule_of(placement);
    for (int axis = 0; axis < kAxes; ++axis) {
      const bool shards = rule.sharded == static_cast<Axis>(axis);
      EXPECT_NE(rule.sums.contains(static_cast<Axis>(axis)), shards) << name_of(placement);
    }
  }
  EXPECT_EQ(rule_of(Placement::kReplicated).sharded, std::nullopt);
  EXPECT_EQ(rule_of(Placement::kTensor).sharded, Axis::kTensor);
  EXPECT_EQ(rule_of(Placement::kExpert).sharded, Axis::kExpert);
}

// A tensor of 8 x 5 elements, split and shared out as its placement says: one owner for each.
TEST(Placement, EveryElementHasOneOwnerOnEveryMesh) {
  const Shape whole{8, 5};
  for (const MeshShape& shape : support::meshes_of(8)) {
    for (const Placement placement : kAll) {
      std::vector<int> owners(40, 0);
      for (int rank = 0; rank < 8; ++rank) {
        SelfCommunicator world(rank, 8);
        const ProcessMesh mesh(world, shape);
        const std::optional<Axis> axis = rule_of(placement).sharded;
        const Shard shard = axis ? Shard::split(whole, 0, mesh.coordinate(*axis), mesh.size(*axis))
                                 : Shard::replicated(whole);
        const GroupPlace place = places_in(mesh).of(placement);
        EXPECT_EQ(place.size * (axis ? mesh.size(*axis) : 1), 8);
        const int64_t local = shard.local().elements();
        const int64_t owned = padded_for(local, place.size) / place.size;
        const int64_t end = std::min(local, (place.rank + 1) * owned);
        for (int64_t i = place.rank * owned; i < end; ++i) {
          ++owners[static_cast<size_t>(shard.begin * 5 + i)];
        }
      }
      EXPECT_EQ(owners, std::vector<int>(40, 1)) << to_string(shape) << " " << name_of(placement);
    }
  }
}

// Ranks of one group have one shard: they agree on the coordinate of the axis that splits, and the
// order of a group is that of the world.
TEST(Placement, GroupsHoldTheSameShard) {
  for (const MeshShape& shape : support::meshes_of(8)) {
    run_ranks(8, [&](Communicator& world) {
      const ProcessMesh mesh(world, shape);
      EXPECT_EQ(&group_of(mesh, Placement::kReplicated), &world);
      for (const Placement placement : kAll) {
        Communicator& group = group_of(mesh, placement);
        const std::optional<Axis> axis = rule_of(placement).sharded;
        std::vector<double> seen(16, 0);
        const auto own = static_cast<size_t>(group.rank());
        seen[own] = world.rank();
        seen[8 + own] = axis ? mesh.coordinate(*axis) : 0;
        group.all_reduce_values(seen);
        for (size_t r = 0; r < static_cast<size_t>(group.size()); ++r) {
          EXPECT_EQ(seen[8 + r], seen[8 + own]);
          EXPECT_TRUE(r == 0 || seen[r - 1] < seen[r]);
        }
      }
    });
  }
}

}  // namespace
}  // namespace tessera
