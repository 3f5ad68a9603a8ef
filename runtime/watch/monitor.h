#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/watch/hang_report.h"
#include "runtime/watch/stragglers.h"
#include "runtime/watch/watch_limits.h"
#include "runtime/watch/watch_message.h"

namespace tessera {

/// What a monitor has to say.
struct MonitorNews {
  std::vector<std::string> lines = {};     ///< for the log; the first of a hang begins with "HANG"
  std::vector<std::string> suspects = {};  ///< hosts that a hang is laid to
};

/// What rank 0's watcher makes of what the watchers say. Times are this host's monotonic clock.
class Monitor {
 public:
  Monitor(int ranks, const WatchLimits& limits, int64_t now);

  void hear(int rank, const HeartbeatBody& heartbeat, int64_t now);
  void hear(const RankReport& report);
  /// The rank has ended in order, or has nothing more to write down.
  void leave(int rank);

  /// Goes on: what the others are to do now. Adds to the news.
  WatchOrder tick(int64_t now, MonitorNews& news);
  /// This host was asleep: silence up to now means nothing.
  void forgive(int64_t now);

 private:
  enum class State : uint8_t { kWatching, kAsking, kWriting, kEnding };

  struct Rank {
    HeartbeatBody heartbeat{};
    int64_t heard = 0;  ///< when; 0: never
    bool left = false;
    std::optional<RankReport> report = {};
  };

  bool lost(const Rank& rank, int64_t now) const;
  bool worried(int64_t now) const;
  bool all_reported(int64_t now) const;
  bool all_left(int64_t now) const;
  bool only_failures(int64_t now) const;
  void decide(int64_t now, MonitorNews& news);
  RankReport report(int rank, int64_t now) const;

  WatchLimits limits_;
  std::vector<Rank> ranks_;
  Stragglers stragglers_;
  State state_ = State::kWatching;
  int64_t since_;
  int64_t compared_;
  bool failed_ = false;  ///< an error is ending the job: nothing more to say
};

}  // namespace tessera
