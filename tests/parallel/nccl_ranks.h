#pragma once

#include <functional>
#include <string>

#include "parallel/communicator.h"

namespace tessera {

/// Runs `body` on ranks that have a NCCL communicator, one GPU each: the processes of mpirun, or in
/// builds for the interpreter 2 and then 3 threads (nccl_ranks_mpi.cc or nccl_ranks_threads.cc is
/// linked in). Returns why it did not, or nothing.
std::string run_nccl_ranks(const std::function<void(Communicator& world)>& body);

/// Elements of an f32 sum that takes several chunks there.
int64_t long_sum();

}  // namespace tessera
