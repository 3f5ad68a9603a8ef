#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace tessera {

/// The GPU of rank `rank`, an index below `gpus` that its process sees: the ranks of a host, told
/// by the entries of `hosts`, take them in turn. More ranks than GPUs share.
int gpu_of_rank(std::span<const std::string> hosts, int rank, int gpus);

/// Whether two ranks have the same GPU; each entry is a rank's host and address of its GPU.
bool shares_a_gpu(std::span<const std::string> gpus);

/// This rank's GPU. Collective. Throws kUsage, on every rank, when a rank sees none.
Device choose_gpu(Communicator& world);

/// The communicator for tensors on `device`, a GPU, of the ranks of `world`, which must outlive it:
/// by NCCL when every rank has a GPU of its own, and nothing, which means `world` itself and
/// staging through host memory, when ranks share one, as NCCL refuses that, or when there is one
/// rank. A ProcessMesh over the result has such communicators along its axes. Collective.
std::unique_ptr<Communicator> make_gpu_world(Communicator& world, Device device);

}  // namespace tessera
