#pragma once

#include <cstdint>
#include <span>

#include "checkpoint/reader.h"
#include "parallel/communicator.h"

namespace tessera {

/// Reads a checkpoint by all ranks of `ranks`: as CheckpointReader::read, but every block of a file
/// that any rank needs is read and checked by one rank, which sends the others what they need of
/// it. So the file system gives each byte once, whatever is replicated, and whichever way a mesh
/// cuts what another has saved. Each rank reads one stretch of the files, forwards; in memory it
/// holds, besides the tensors, some hundred MiB of what is under way. Collective; `into` is this
/// rank's, on the device of `stream`.
///
/// What every element of the checkpoint was is checked end to end: `owned` are boxes in the memory
/// of `into` that together, over all ranks, hold every element of their tensors once. The sums of
/// their logical digests must be those of the manifest.
///
/// Returns the bytes of blocks that this rank has read. When any rank fails, throws on every rank
/// what the lowest one has met: kBadData for damage.
int64_t load_together(Communicator& ranks, Stream& stream, const CheckpointReader& reader,
                      std::span<const TensorGroup> into, std::span<const TensorGroup> owned);

}  // namespace tessera
