#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "parallel/nccl_communicator.h"
#include "parallel/thread_communicator.h"
#include "tests/support/compare.h"

// What NCCL says when something goes wrong, as the interpreter's says it.

namespace tessera {
namespace {

using support::Tensor;

TEST(NcclErrors, ARankThatGivesUpIsToldToTheOthers) {
  std::atomic<int> told{0};
  const auto body = [&](Communicator& host) {
    const auto world = make_nccl_communicator(host, support::device());
    const auto part = world->split(std::vector<int>{0, 0, 1}, "part");
    Stream stream{support::device()};
    const Tensor data(DType::kF32, {4});
    world->all_reduce(stream, data, Reduction::kSum);
    world->barrier();  // nobody is in the exchange any more
    if (world->rank() == 2) throw std::runtime_error("rank 2 gives up");
    support::expect_error([&] { world->all_reduce(stream, data, Reduction::kSum); },
                          concat("ncclAllGather on world: rank ", world->rank(),
                                 " of 3 has an error: remote process exited or there was a network "
                                 "error; NCCL says: another rank has aborted"));
    // So has the other communicator of this rank, before its partner could wait for it.
    support::expect_error([&] { part->all_reduce(stream, data, Reduction::kSum); },
                          "all_reduce on part: NCCL was aborted after an earlier error");
    ++told;
  };
  EXPECT_THROW(run_ranks(3, body), std::runtime_error);
  EXPECT_EQ(told, 2);
}

TEST(NcclErrors, SynchronizeSeesThem) {
  std::atomic<bool> told{false};
  const auto body = [&](Communicator& host) {
    const auto world = make_nccl_communicator(host, support::device());
    Stream stream{support::device()};
    world->barrier();
    if (world->rank() == 1) throw std::runtime_error("rank 1 gives up");
    support::expect_error(
        [&] {
          while (true) world->synchronize(stream);
        },
        "an exchange on world: rank 0 of 2 has an error: remote process exited");
    told = true;
  };
  EXPECT_THROW(run_ranks(2, body), std::runtime_error);
  EXPECT_TRUE(told);
}

TEST(NcclErrors, CountsThatDisagreeEndInNcclsWords) {
  std::atomic<bool> told{false};
  const auto body = [&](Communicator& host) {
    const auto world = make_nccl_communicator(host, support::device());
    Stream stream{support::device()};
    const Tensor send(DType::kF32, {4, 3});
    const Tensor receive(DType::kF32, {4, 3});
    std::vector<int64_t> sent{1, 1};
    std::vector<int64_t> received{1, world->rank() == 0 ? 2 : 1};
    const auto exchange = [&] { world->all_to_all(stream, send.view(), sent, receive, received); };
    if (world->rank() == 0) {
      support::expect_error(exchange, "rank 1 sent 12 bytes, rank 0 expects 24");
      told = true;
      return;
    }
    try {
      exchange();  // by itself it is right
    } catch (const Error& error) {
      // Unless it came so late that rank 0 had ended all of them.
      EXPECT_NE(std::string(error.what()).find("another rank has aborted"), std::string::npos)
          << error.what();
    }
  };
  run_ranks(2, body);
  EXPECT_TRUE(told);
}

TEST(NcclErrors, IsForGpus) {
  run_ranks(2, [](Communicator& host) {
    const auto world = make_nccl_communicator(host, support::device());
    support::expect_error([&] { make_nccl_communicator(*world, Device{}); },
                          "NCCL communicator: expected a GPU");
  });
}

}  // namespace
}  // namespace tessera
