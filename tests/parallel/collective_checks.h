#pragma once

#include <cstdint>

#include "parallel/communicator.h"

namespace tessera {

/// The same checks for every implementation of Communicator. Collective over `world`.
/// Every rank knows what all others bring, so it can work out each result alone.
void check_all_reduce(Communicator& world);
void check_max_and_nan(Communicator& world);
void check_all_gather(Communicator& world);
void check_reduce_scatter(Communicator& world);
void check_all_to_all(Communicator& world);
void check_broadcast(Communicator& world);
void check_values(Communicator& world);
void check_split(Communicator& world);

/// A hash of the results of a run of exchanges on this rank, of short and of long messages.
uint64_t exchange_digest(Communicator& world);

}  // namespace tessera
