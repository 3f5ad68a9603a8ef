#pragma once

#include <functional>

#include "parallel/communicator.h"

namespace tessera {

/// Runs `body` on `ranks` threads of this process, each with its own Communicator of that size, a
/// HostCommunicator. That of tests and of sanitizer builds: no mpirun, no network.
///
/// A rank that throws, or returns while others still wait for it, ends the run: the others get an
/// Error from the exchange they are in, or from their next one. Ranks that meet in different
/// exchanges, or bring tensors that do not fit, all get an Error that says who did what.
/// The first exception of any rank is thrown here, after all ranks have ended.
void run_ranks(int ranks, const std::function<void(Communicator& world)>& body);

}  // namespace tessera
