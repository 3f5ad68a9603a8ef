#pragma once

#include <cstdint>
#include <functional>

#include "parallel/communicator.h"

namespace tessera {

/// How the monotonic clocks of the ranks' hosts stand to that of rank 0.
struct ClockOffset {
  int64_t origin = 0;   ///< rank 0's clock before the measurement; all later times are behind it
  int64_t to_root = 0;  ///< rank 0's clock minus this rank's, nanoseconds
  int64_t error = 0;    ///< to_root is wrong by at most this
  int64_t worst_error = 0;  ///< of all ranks
  int clocks = 1;           ///< that the ranks have between them
};

/// A clock and what tells it from others: ranks whose identities are equal read the same one.
struct HostClock {
  std::function<int64_t()> now;
  uint64_t identity = 0;
};

/// This host's monotonic clock.
HostClock monotonic_clock();

/// Collective. One rank of every clock measures, by barriers: nobody leaves one before all have
/// entered it. So rank 0's clock is at least what it showed when rank 0 entered and at most what it
/// showed when it left, whenever this rank left and entered; each barrier narrows the range, and
/// the offset is the middle of what is left. Ranks that share rank 0's clock have 0, exactly.
/// A clock that jumps meanwhile leaves a range that is upside down, and an error as large.
ClockOffset measure_clock_offset(Communicator& ranks, const HostClock& clock);

}  // namespace tessera
