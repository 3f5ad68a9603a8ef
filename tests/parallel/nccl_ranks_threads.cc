#include "parallel/nccl_communicator.h"
#include "parallel/thread_communicator.h"
#include "tests/parallel/nccl_ranks.h"
#include "tests/support/device.h"

namespace tessera {

namespace {

// The interpreter would take its time over real ones. Slices do not begin at multiples of 16 bytes.
constexpr int64_t kChunk = 100004;

}  // namespace

int64_t long_sum() {
  return 2 * kChunk / 4 + 1000;
}

// All have the device of the tests: the interpreter's NCCL does not mind.
std::string run_nccl_ranks(const std::function<void(Communicator& world)>& body) {
  for (const int ranks : {2, 3}) {
    run_ranks(ranks, [&](Communicator& host) {
      const std::unique_ptr<Communicator> world =
          make_nccl_communicator(host, support::device(), kChunk);
      body(*world);
    });
  }
  return {};
}

}  // namespace tessera
