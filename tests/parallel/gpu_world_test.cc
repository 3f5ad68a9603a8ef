#include "parallel/gpu_world.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/core/build.h"
#include "parallel/process_mesh.h"
#include "parallel/self_communicator.h"
#include "parallel/thread_communicator.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

std::vector<int> gpus_of(const std::vector<std::string>& hosts, int gpus) {
  std::vector<int> found;
  for (size_t r = 0; r < hosts.size(); ++r) {
    found.push_back(gpu_of_rank(hosts, static_cast<int>(r), gpus));
  }
  return found;
}

TEST(GpuOfRank, RanksOfAHostTakeTheGpusInTurn) {
  EXPECT_EQ(gpus_of({"a", "a", "a", "b", "b", "b"}, 4), (std::vector<int>{0, 1, 2, 0, 1, 2}));
  EXPECT_EQ(gpus_of({"a", "b", "a", "b"}, 2), (std::vector<int>{0, 0, 1, 1}));
}

TEST(GpuOfRank, MoreRanksThanGpusShare) {
  EXPECT_EQ(gpus_of({"a", "a", "a", "b"}, 2), (std::vector<int>{0, 1, 0, 0}));
  EXPECT_EQ(gpus_of({"a", "a"}, 1), (std::vector<int>{0, 0}));
  support::expect_error([] { gpus_of({"a"}, 0); }, "gpu_of_rank: rank 0 of 1 and 0 GPUs");
}

TEST(SharesAGpu, WhenTwoHaveTheSameAddressOnTheSameHost) {
  EXPECT_FALSE(shares_a_gpu(std::vector<std::string>{"1b of a", "1c of a", "1b of b"}));
  EXPECT_TRUE(shares_a_gpu(std::vector<std::string>{"1b of a", "1b of b", "1b of a"}));
}

TEST(ChooseGpu, TellsEveryRankThatThereIsNone) {
  if (find_gpus().count > 0) GTEST_SKIP() << "there is a GPU";
  run_ranks(2, [](Communicator& world) {
    try {
      choose_gpu(world);
      FAIL() << "nothing was thrown";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::kUsage);
      EXPECT_NE(std::string(e.what()).find("device: gpu was asked for"), std::string::npos);
    }
  });
}

// Ranks are threads. The interpreter has one GPU under eight numbers, so all share it.
TEST(MakeGpuWorld, StagesWhereRanksShare) {
  if constexpr (!kCudaBuilt) {
    GTEST_SKIP() << "this build has no CUDA backend";
  } else {
    const int gpus = find_gpus().count;
    if (gpus == 0) GTEST_SKIP() << "there is no GPU";
    for (const int ranks : {1, gpus + 1}) {
      run_ranks(ranks, [&](Communicator& host) {
        const Device device = choose_gpu(host);
        EXPECT_EQ(device, (Device{DeviceKind::kGpu, host.rank() % gpus}));
        const std::unique_ptr<Communicator> by_nccl = make_gpu_world(host, device);
        EXPECT_EQ(by_nccl, nullptr);
        const ProcessMesh mesh(host, {.data = ranks});
        Stream stream{device};
        const support::Tensor memory = support::filled(DType::kI32, {1}, 1);
        const TensorView data(memory.view().data(), DType::kI32, {1}, device);
        mesh.along(Axis::kData).all_reduce(stream, data, Reduction::kSum);
        host.synchronize(stream);
        EXPECT_EQ(memory.as<int32_t>()[0], ranks);
      });
    }
  }
}

}  // namespace
}  // namespace tessera
