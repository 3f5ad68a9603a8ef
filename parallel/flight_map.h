#pragma once

#include <array>
#include <cstdint>
#include <type_traits>

#include "kernels/core/dtype.h"

namespace tessera {

// What a rank is doing and has exchanged, as plain bytes: in a file, another process reads them
// while the rank works, hangs, or when it is gone. Times are nanoseconds of the host's monotonic
// clock.

/// The exchanges of a Communicator.
enum class Collective : uint8_t {
  kAllReduce,
  kAllGather,
  kReduceScatter,
  kAllToAll,
  kExchangeRows,
  kBroadcast,
  kAllReduceValues,
  kBarrier,
  kSplit,
};
inline constexpr int kCollectives = 9;

/// "all_reduce", "all_gather", ...
const char* name_of(Collective operation);

/// What a rank is at. The step is from kData to kUpdate.
enum class Phase : uint8_t {
  kSetup,
  kData,
  kForward,
  kBackward,
  kSums,
  kUpdate,
  kBetweenSteps,
  kValidation,
  kCheckpoint,
  kEnd,
};
inline constexpr int kPhases = 10;

/// "setup", "data", "forward", ...
const char* name_of(Phase phase);
/// Whether it is a part of a step.
inline bool in_step(Phase phase) {
  return phase >= Phase::kData && phase <= Phase::kUpdate;
}

/// One exchange of a rank.
struct CollectiveRecord {
  int64_t index = -1;     ///< of all exchanges of the rank; -1 while the rest is being written
  int64_t number = 0;     ///< 0, 1, ... on its communicator, the same on every rank
  int64_t elements = 0;   ///< of what every rank brings; elements of a row for those that move rows
  int64_t sent = 0;       ///< bytes from this rank to others
  int64_t received = 0;   ///< bytes from others to this rank
  int64_t step = -1;      ///< as set_place said
  int64_t started = 0;    ///< when
  int64_t completed = 0;  ///< when; 0: not yet
  int32_t layer = -1;
  int32_t group = -1;  ///< its communicator, an index of FlightMap::groups; -1: one too many
  Collective operation = Collective::kBarrier;
  DType dtype = DType::kU8;  ///< of the tensors; u8 when there are none
  Phase phase = Phase::kSetup;
  uint8_t unused = 0;
  int32_t line = 0;                ///< of the call, in `file`
  std::array<char, 48> file = {};  ///< the last parts of its path; ends with 0
};
static_assert(sizeof(CollectiveRecord) == 128 && std::is_trivially_copyable_v<CollectiveRecord>);

/// One communicator of a rank. Ranks whose entries have the same name and the same first are of
/// one group.
struct FlightGroup {
  std::array<char, 36> name = {};  ///< cut to 35 characters, ends with 0
  int32_t first = 0;               ///< the rank in the world of its first member
  int32_t rank = 0;                ///< this rank's place in it
  int32_t size = 1;
  int64_t started = 0;     ///< exchanges on it
  int64_t completed = -1;  ///< the number of the last one that ended
};
static_assert(sizeof(FlightGroup) == 64 && std::is_trivially_copyable_v<FlightGroup>);

/// How a rank has ended, as far as it could say.
enum class FlightEnd : int32_t { kRunning, kOrderly, kFailed };

/// Where a rank is.
struct FlightState {
  static constexpr int64_t kLayout = 0x0001'7468'6769'6c66;  ///< "flight" and its version

  int64_t layout = kLayout;
  int64_t process = 0;  ///< its id on its host
  int32_t rank = 0;
  int32_t ranks = 1;
  std::array<char, 64> host = {};  ///< ends with 0
  int64_t began = 0;               ///< when the rank did
  int64_t step = -1;               ///< -1 outside of all steps
  int32_t layer = -1;
  Phase phase = Phase::kSetup;
  std::array<uint8_t, 3> unused = {};
  int64_t phase_began = 0;
  int64_t section_began = 0;  ///< the step, or the phase outside of steps
  int64_t waits_in = -1;      ///< the record of the exchange that it is blocked in; -1: none
  int64_t wait_began = 0;
  int64_t waited = 0;     ///< nanoseconds blocked in exchanges, in all
  int64_t steps = 0;      ///< done since it began
  int64_t last_step = 0;  ///< nanoseconds of the last of them
  int64_t busy = 0;       ///< nanoseconds of all of them, without those blocked in exchanges
  int64_t records = 0;    ///< exchanges that were started
  int32_t groups = 0;
  FlightEnd end = FlightEnd::kRunning;
  // Written by its watcher.
  int64_t seen = 0;                    ///< when the process was looked at last
  int64_t process_state = 0;           ///< as in /proc: R, S, D, T, ...; X: it is gone
  std::array<char, 32> waits_at = {};  ///< the kernel function that it sleeps in; ends with 0
};
static_assert(std::is_trivially_copyable_v<FlightState>);

/// All of it.
struct FlightMap {
  static constexpr int64_t kRecords = 4096;
  static constexpr int64_t kGroups = 64;

  FlightState state;
  std::array<FlightGroup, kGroups> groups;
  std::array<CollectiveRecord, kRecords> ring;  ///< record i is at i % kRecords
};
static_assert(std::is_trivially_copyable_v<FlightMap>);

}  // namespace tessera
