#pragma once

#include "parallel/communicator.h"

namespace tessera {

/// As collective_checks.h, for exchanges of rows, exchanges that are started and waited for, and
/// the record of both. Collective over `world`.
void check_in_place(Communicator& world);
void check_exchange_rows(Communicator& world);
void check_pending(Communicator& world);
void check_pending_in_chunks(Communicator& world);
void check_row_exchange(Communicator& world);
void check_traffic(Communicator& world);

}  // namespace tessera
