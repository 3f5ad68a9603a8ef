#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "parallel/mpi_communicator.h"
#include "tests/faults/child_job.h"

// One rank of a job under mpirun: save_ranks RUN KEEP_LAST STEPS FAIL_POINTS, with the meaning of
// SaveJob. Rank 0 writes its messages to the file that the environment variable kPipeVariable
// names.

namespace tessera::faults {
namespace {

int run(const std::vector<std::string>& arguments) {
  CHECK(arguments.size() == 5, "expected save_ranks RUN KEEP_LAST STEPS FAIL_POINTS");
  MpiEnvironment mpi;
  const char* pipe = std::getenv(kPipeVariable);
  const int messages = open(pipe == nullptr ? "/dev/stdout" : pipe, O_WRONLY | O_CLOEXEC);
  const auto tell = [&](const Message& message) {
    const std::string line = encode(message);
    CHECK(write(messages, line.data(), line.size()) == std::ssize(line), "nobody listens");
  };
  set_error_rank(mpi.world().rank(), mpi.world().size());
  const SaveJob job{.run = arguments[1],
                    .keep_last = std::stoll(arguments[2]),
                    .steps = std::stoll(arguments[3]),
                    .faults = FailPoints(arguments[4])};
  try {
    save_steps(mpi.world(), job, tell);
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    if (mpi.world().rank() == 0) tell({Event::kEnded, 0, error.what()});
    mpi.abort(static_cast<int>(error.code()));
  }
}

}  // namespace
}  // namespace tessera::faults

int main(int argc, char** argv) {
  return tessera::faults::run({argv, argv + argc});
}
