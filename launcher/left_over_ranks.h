#pragma once

#include <string>

namespace tessera {

/// The variable by which every rank of a launch is known, whatever became of those who started it.
inline constexpr const char* kLaunchVariable = "TESSERA_LAUNCH";

struct LeftOverRanks {
  int ended = 0;      ///< were there, and are gone now
  int remaining = 0;  ///< cannot be ended, as those that wait for a dead file server
};

/// Kills the processes of this host that have kLaunchVariable with the value `launch`, and waits
/// for their end, some seconds at most. This process is not one of them, even when it has it.
LeftOverRanks end_left_over_ranks(const std::string& launch);

}  // namespace tessera
