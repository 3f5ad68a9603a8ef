#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace tessera {

/// A world whose tensors on `device`, a GPU that no other rank has, travel by NCCL, and whose host
/// tensors, values and barriers by `host`, of the same ranks. Collective. It takes the place of
/// `host`, which must outlive it and is not to be called any more; what is split from it has both
/// roads too. Throws in builds without CUDA.
///
/// Sums are taken in the order of the ranks as everywhere (ordered_reduction.h): each rank gets
/// the others' parts of its slice by NCCL and adds them in one kernel. NCCL's own reductions
/// promise that all ranks get the same bits from one call, and no more: the order in which they
/// add is that of the ring, tree or switch that NCCL picks from the size of the message, the
/// machines and its version, bf16 is rounded after every addition, and a maximum may lose a NaN. So
/// a run that goes on on other machines would go on with other bits.
///
/// Exchanges of one communicator are on a stream of its own, beside the caller's: it waits for the
/// caller's stream at the start, which waits for it in Pending::wait. No call waits on the host,
/// but for connections that NCCL makes when two ranks meet for the first time.
///
/// An error of NCCL on this rank, or that NCCL tells of another, aborts all communicators of the
/// world and is thrown, with NCCL's last words, by the call that sees it or by synchronize. Counts
/// of rows that disagree are not found here as they are on the host: NCCL waits forever, and the
/// watcher tells which exchange.
///
/// Long sums go in chunks of `chunk` bytes, 0: chunk_bytes, as on the host.
std::unique_ptr<Communicator> make_nccl_communicator(Communicator& host, Device device,
                                                     int64_t chunk = 0);

}  // namespace tessera
