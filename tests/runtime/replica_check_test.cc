#include "runtime/train/replica_check.h"

#include <gtest/gtest.h>

#include "parallel/agreement.h"
#include "parallel/thread_communicator.h"
#include "tests/support/random_tensor.h"

namespace tessera {
namespace {

/// What a rank of a mesh data 2 x expert 1 x sequence 2 x tensor 2 says of its parameters, after
/// `corrupt` has had its way with them. Ranks in the order of the mesh, tensor innermost.
std::string verdict(const std::function<void(int rank, ParameterStore&, std::string&)>& corrupt) {
  std::string verdict;
  run_ranks(8, [&](Communicator& world) {
    const ProcessMesh mesh(world, {.data = 2, .expert = 1, .sequence = 2, .tensor = 2});
    Stream stream(Device{}, 2);
    ParameterStore store;
    const int part = mesh.coordinate(Axis::kTensor);
    store.declare({.name = "norm", .shard = Shard::replicated({64})});
    store.declare({.name = "query",
                   .shard = Shard::split({1'200'000, 2}, 0, part, 2),  // several pieces
                   .placement = Placement::kTensor,
                   .initializer = Initializer::kConstant});
    store.declare({.name = "bias", .shard = Shard::replicated({8}), .trained = false});
    store.allocate(Device{}, /*gradients=*/true, places_in(mesh));
    store.initialize(stream, 7);
    std::string small_state = "step 3";
    corrupt(world.rank(), store, small_state);
    std::string mine = "all agree";
    try {
      check_replicas(stream, mesh, store, small_state);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kTryAgain);
      mine = without_rank(error.what());
    }
    world.barrier();
    if (world.rank() == 0) verdict = mine;
    world.barrier();
    EXPECT_EQ(mine, verdict) << "on rank " << world.rank();
  });
  return verdict;
}

void flip(ParameterStore& store, const std::string& name, int64_t element) {
  auto values = store.find(name).value.as<float>();
  values[static_cast<size_t>(element)] = -values[static_cast<size_t>(element)];
}

TEST(ReplicaCheck, CopiesThatAgreePass) {
  EXPECT_EQ(verdict([](int, ParameterStore&, std::string&) {}), "all agree");
}

TEST(ReplicaCheck, NamesTheRankThatMostContradict) {
  for (const int bad : {0, 5, 7}) {
    const std::string text = verdict([&](int rank, ParameterStore& store, std::string&) {
      if (rank == bad) flip(store, "norm", 63);
    });
    EXPECT_NE(text.find(concat("rank ", bad, " on ")), std::string::npos) << text;
    EXPECT_NE(text.find("other values of norm than most of its 7 replicas"), std::string::npos)
        << text;
  }
}

// Shards of tensor rank 1 are on ranks 1, 3, 5 and 7.
TEST(ReplicaCheck, ComparesShardsOverTheRanksThatHoldThem) {
  for (const int64_t element : {int64_t{0}, int64_t{1'199'999}}) {
    const std::string text = verdict([&](int rank, ParameterStore& store, std::string&) {
      if (rank == 3) flip(store, "query", element);
    });
    EXPECT_NE(text.find("rank 3 on "), std::string::npos) << text;
    EXPECT_NE(text.find("query than most of its 3 replicas"), std::string::npos) << text;
  }
}

TEST(ReplicaCheck, WithoutAMajorityItNamesTheLowestRankThatDiffers) {
  const std::string text = verdict([](int rank, ParameterStore& store, std::string&) {
    if (rank == 2 || rank == 4) flip(store, "query", 9);  // of 0, 2, 4 and 6: two against two
  });
  EXPECT_NE(text.find("rank 0 on "), std::string::npos) << text;
  EXPECT_NE(text.find("query than others of its 3 replicas"), std::string::npos) << text;
}

TEST(ReplicaCheck, SeesBuffersAndTheProgress) {
  const std::string buffer = verdict([](int rank, ParameterStore& store, std::string&) {
    if (rank == 6) store.find("bias").value.as<float>()[1] = 1;
  });
  EXPECT_NE(buffer.find("rank 6 on "), std::string::npos) << buffer;
  EXPECT_NE(buffer.find("values of bias than"), std::string::npos) << buffer;
  const std::string progress = verdict([](int rank, ParameterStore&, std::string& small_state) {
    if (rank == 4) small_state = "step 4";
  });
  EXPECT_NE(progress.find("rank 4 on "), std::string::npos) << progress;
  EXPECT_NE(progress.find("the progress of the run"), std::string::npos) << progress;
}

}  // namespace
}  // namespace tessera
