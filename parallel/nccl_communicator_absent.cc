#include "parallel/nccl_communicator.h"

namespace tessera {

// NCCL is used in builds with CUDA that find it.
std::unique_ptr<Communicator> make_nccl_communicator(Communicator&, Device, int64_t) {
  throw Error(
      ExitCode::kUsage,
      "tensors of a GPU cannot travel by NCCL, which this build has not found; install it and "
      "configure with cmake --preset cuda");
}

}  // namespace tessera
