#include "parallel/process_mesh.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "parallel/mesh.pb.h"
#include "parallel/self_communicator.h"
#include "parallel/thread_communicator.h"
#include "tests/parallel/meshes.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"

namespace tessera {
namespace {

using support::meshes_of;

/// Coordinates by the definition: data outermost, tensor innermost.
std::array<int, kAxes> coordinates(const MeshShape& shape, int rank) {
  return {rank / (shape.tensor * shape.sequence * shape.expert),
          rank / (shape.tensor * shape.sequence) % shape.expert,
          rank / shape.tensor % shape.sequence, rank % shape.tensor};
}

TEST(ProcessMesh, AxesJoinTheRanksThatDifferOnlyThere) {
  EXPECT_EQ(meshes_of(8).size(), 20u);
  for (const MeshShape& shape : meshes_of(8)) {
    run_ranks(8, [&](Communicator& world) {
      const ProcessMesh mesh(world, shape);
      const auto own = coordinates(shape, world.rank());
      Stream stream{support::device()};
      for (int a = 0; a < kAxes; ++a) {
        const Axis axis = static_cast<Axis>(a);
        EXPECT_EQ(mesh.coordinate(axis), own[static_cast<size_t>(a)]) << to_string(shape);
        int64_t expected = 0;
        for (int r = 0; r < 8; ++r) {
          auto other = coordinates(shape, r);
          other[static_cast<size_t>(a)] = own[static_cast<size_t>(a)];
          if (other == own) expected += int64_t{1} << (4 * r);
        }
        const support::Tensor members(DType::kI64, {1});
        members.as<int64_t>()[0] = int64_t{1} << (4 * world.rank());
        mesh.along(axis).all_reduce(stream, members, Reduction::kSum);
        stream.synchronize();
        EXPECT_EQ(members.as<int64_t>()[0], expected) << to_string(shape) << " " << name_of(axis);
        EXPECT_EQ(mesh.along(axis).name(), name_of(axis));
        EXPECT_EQ(&mesh.group({axis}), &mesh.along(axis));
      }
    });
  }
}

TEST(ProcessMesh, GroupsJoinTheRanksThatDifferOnlyThere) {
  for (const MeshShape& shape : meshes_of(8)) {
    run_ranks(8, [&](Communicator& world) {
      const ProcessMesh mesh(world, shape);
      const auto own = coordinates(shape, world.rank());
      Stream stream{support::device()};
      for (const AxisSet axes : {kContext, kBatch, kTensorReplicas, kExpertReplicas, kAllAxes}) {
        SCOPED_TRACE(to_string(shape) + " " + axes.name());
        std::vector<int> expected;
        for (int r = 0; r < 8; ++r) {
          const auto other = coordinates(shape, r);
          bool member = true;
          for (size_t a = 0; a < kAxes; ++a) {
            member = member && (axes.contains(static_cast<Axis>(a)) || other[a] == own[a]);
          }
          if (member) expected.push_back(r);
        }
        Communicator& group = mesh.group(axes);
        ASSERT_EQ(group.size(), static_cast<int>(expected.size()));
        const support::Tensor part = support::filled(DType::kI32, {1}, world.rank());
        const support::Tensor whole(DType::kI32, {group.size()});
        group.all_gather(stream, part.view(), whole);
        stream.synchronize();
        const auto members = whole.as<int32_t>();
        EXPECT_EQ(std::vector<int>(members.begin(), members.end()), expected);
        EXPECT_EQ(expected[static_cast<size_t>(group.rank())], world.rank());
      }
    });
  }
}

TEST(ProcessMesh, GroupsWithTheSameRanksAreShared) {
  SelfCommunicator world(0, 8);
  const ProcessMesh narrow(world, {2, 1, 1, 4});
  EXPECT_EQ(&narrow.group(kContext), &narrow.along(Axis::kTensor));
  EXPECT_EQ(&narrow.group(kBatch), &narrow.along(Axis::kData));
  EXPECT_EQ(&narrow.group(kExpertReplicas), &world);
  EXPECT_EQ(&narrow.group(kTensorReplicas), &narrow.along(Axis::kData));
  const ProcessMesh mesh(world, {1, 2, 2, 2});
  EXPECT_EQ(mesh.group(kContext).name(), "sequence*tensor");
  EXPECT_EQ(mesh.group(kTensorReplicas).name(), "data*expert*sequence");
  EXPECT_EQ(&mesh.group(kExpertReplicas), &mesh.group(kContext));
  EXPECT_EQ(&mesh.group(kAllAxes), &world);
  support::expect_error(
      [&] {
        mesh.group({Axis::kExpert, Axis::kTensor});
      },
      "mesh: there is no group for the axes \"expert*tensor\", expected one axis, "
      "sequence*tensor, data*expert, data*expert*sequence, data*sequence*tensor or all");
}

TEST(AxisSet, IsASet) {
  constexpr AxisSet set{Axis::kTensor, Axis::kData};
  static_assert(set.contains(Axis::kData) && !set.contains(Axis::kExpert));
  static_assert(set == AxisSet{Axis::kData, Axis::kTensor});
  static_assert(set.without(Axis::kData) == AxisSet{Axis::kTensor});
  EXPECT_EQ(set.name(), "data*tensor");
  EXPECT_EQ(AxisSet().name(), "");
  EXPECT_EQ(kAllAxes.name(), "world");
}

TEST(ProcessMesh, APlannedRankKnowsItsPlace) {
  const MeshShape shape{6, 4, 2, 8};
  for (const int rank : {0, 1, 100, 383}) {
    SelfCommunicator world(rank, shape.ranks());
    const ProcessMesh mesh(world, shape);
    const auto own = coordinates(shape, rank);
    for (int a = 0; a < kAxes; ++a) {
      EXPECT_EQ(mesh.coordinate(static_cast<Axis>(a)), own[static_cast<size_t>(a)]);
    }
    EXPECT_EQ(mesh.size(Axis::kData), 6);
    EXPECT_EQ(mesh.size(Axis::kTensor), 8);
    EXPECT_EQ(&mesh.world(), &world);
    EXPECT_EQ(mesh.shape(), shape);
  }
}

TEST(ProcessMesh, SaysWhichMeshWouldFit) {
  SelfCommunicator world(0, 8);
  const auto refusal = [&](const MeshShape& shape) {
    try {
      ProcessMesh mesh(world, shape);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::kUsage);
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_EQ(refusal({3, 1, 1, 2}),
            "mesh: data 3 x expert 1 x sequence 1 x tensor 2 needs 6 ranks, the job has 8; the "
            "nearest mesh that fits is data 4 x expert 1 x sequence 1 x tensor 2, or start 6 "
            "ranks");
  EXPECT_EQ(refusal({1, 1, 1, -2}), "mesh: tensor is -2, expected 1 to the 8 ranks of the job");
  EXPECT_EQ(refusal({1, 9, 1, 1}), "mesh: expert is 9, expected 1 to the 8 ranks of the job");
  EXPECT_EQ(refusal({2, 2, 2, 1}), "");
}

MeshConfig config(int data, int expert, int sequence, int tensor) {
  MeshConfig config;
  config.set_data(data);
  config.set_expert(expert);
  config.set_sequence(sequence);
  config.set_tensor(tensor);
  return config;
}

TEST(MeshShape, FillsInWhatTheConfigurationLeavesOut) {
  EXPECT_EQ(mesh_shape(MeshConfig(), 6), (MeshShape{6, 1, 1, 1}));
  EXPECT_EQ(mesh_shape(config(0, 2, 0, 3), 12), (MeshShape{2, 2, 1, 3}));
  EXPECT_EQ(mesh_shape(config(3, 0, 2, 0), 6), (MeshShape{3, 1, 2, 1}));
  support::expect_error([] { mesh_shape(config(0, 3, 0, 1), 8); },
                        "mesh: data 2 x expert 3 x sequence 1 x tensor 1 needs 6 ranks, the job "
                        "has 8; the nearest mesh that fits is data 2 x expert 4");
  const int huge = std::numeric_limits<int>::max();
  support::expect_error([&] { mesh_shape(config(huge, huge, huge, huge), 8); },
                        "mesh: data is 2147483647, expected 1 to the 8 ranks of the job");
  support::expect_error([&] { mesh_shape(config(0, -1, 1, 1), 8); },
                        "mesh: expert is -1, expected 1 to the 8 ranks of the job");
}

}  // namespace
}  // namespace tessera
