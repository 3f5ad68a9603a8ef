#pragma once

#include <sys/types.h>

#include <filesystem>

#include "parallel/communicator.h"
#include "runtime/watch/watch_limits.h"
#include "runtime/watch/watch_socket.h"

namespace tessera {

/// A rank's end of its watcher: a process of its own beside the rank, which sees it hang, stop or
/// die, and talks with the watchers of the other ranks without MPI. What the watchers do:
/// watcher.h.
class RankWatch {
 public:
  /// Starts the watcher. Make it before there are other threads, and before MPI. One that is not
  /// wanted does nothing.
  explicit RankWatch(bool wanted = true);
  /// As end(), when it has not ended.
  ~RankWatch();
  RankWatch(const RankWatch&) = delete;
  RankWatch& operator=(const RankWatch&) = delete;

  /// The run begins: its flight recorder is kept in `run_directory`/flight from now on, and the
  /// watchers know each other. What an earlier job left there is moved to `flight.previous`.
  /// Collective over the world. Throws kUsage, kTryAgain.
  void begin(const std::filesystem::path& run_directory, const WatchLimits& limits,
             Communicator& world);
  /// This rank has met an error and will end the job: the watchers say where the ranks parted, if
  /// they did. Returns when they have, at most 8 s later.
  void fail();
  /// The run has ended in order, and there is nothing to look back at: removes its files. Before
  /// MPI is left, as the first rank that exits may take the others along.
  void forget();
  /// The rank has ended in order.
  void end();

 private:
  void tell(const void* message, size_t bytes);
  bool hear(void* message, size_t bytes, double seconds);

  Descriptor channel_;
  pid_t watcher_ = 0;
  Descriptor stacks_;
  FlightRecorder* recorder_ = nullptr;  ///< the world's, once the run has begun
  std::filesystem::path flight_;
  int rank_ = 0;
};

}  // namespace tessera
