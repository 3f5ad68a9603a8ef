#include <cstdio>
#include <exception>

#include "parallel/mpi_communicator.h"

// Rank 1 fails while all others wait for it. The job must end, and say why.

namespace tessera {
namespace {

void fail_on_rank_one() {
  MpiEnvironment mpi;
  set_error_rank(mpi.world().rank(), mpi.world().size());
  try {
    CHECK(mpi.world().rank() != 1, "this rank gives up");
    mpi.world().barrier();
  } catch (const Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    mpi.abort(static_cast<int>(ExitCode::kTryAgain));
  }
}

}  // namespace
}  // namespace tessera

int main() {
  tessera::fail_on_rank_one();
  return 0;
}
