#include <array>
#include <cstdlib>
#include <optional>
#include <sstream>
#include <vector>

#include "parallel/mpi_communicator.h"
#include "parallel/nccl_communicator.h"
#include "tests/parallel/nccl_ranks.h"
#include "tests/support/device.h"

namespace tessera {

namespace {

/// The GPU of this process, the only one that it sees: tensors of tests are on number 0. Before the
/// first call of CUDA, which MPI_Init may make.
void see_one_gpu() {
  const char* const number = std::getenv("OMPI_COMM_WORLD_LOCAL_RANK");
  const char* const seen = std::getenv("CUDA_VISIBLE_DEVICES");
  std::vector<std::string> names;
  std::istringstream list(seen == nullptr ? "0,1,2,3,4,5,6,7" : seen);
  for (std::string name; std::getline(list, name, ',');) names.push_back(name);
  const size_t own = number == nullptr ? 0 : std::stoul(number);
  setenv("CUDA_VISIBLE_DEVICES", own < names.size() ? names[own].c_str() : "-1", 1);
}

struct Ranks {
  Ranks() {
    see_one_gpu();
    mpi.emplace();
    std::array<double, 1> with_gpu{find_gpus().count > 0 ? 1.0 : 0.0};
    mpi->world().all_reduce_values(with_gpu);
    const int ranks = mpi->world().size();
    if (with_gpu[0] < ranks) {
      why = concat(ranks, " ranks need a GPU each, and ", with_gpu[0], " have one");
    } else {
      world = make_nccl_communicator(mpi->world(), support::device());
    }
  }

  std::optional<MpiEnvironment> mpi;
  std::unique_ptr<Communicator> world;
  std::string why;
};

}  // namespace

int64_t long_sum() {
  return 9 << 20;
}

std::string run_nccl_ranks(const std::function<void(Communicator& world)>& body) {
  static Ranks ranks;
  if (ranks.why.empty()) body(*ranks.world);
  return ranks.why;
}

}  // namespace tessera
