#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "runtime/trace/timeline.h"

namespace tessera {

/// A rank's Events as events of the Chrome trace format, one a line, each with ",\n" behind it.
///
/// A rank is a process. Its threads are "compute", which has steps, phases, layers and waits inside
/// each other; one for each communicator, which has the exchanges that block; and "checkpoint".
/// Exchanges that go on while the rank does other things are asynchronous events, with an arrow
/// from their start to the wait for them. Times are microseconds since `origin`.
class TraceText {
 public:
  struct Rank {
    int rank = 0;
    std::string name;     ///< "rank 3: data 1, host a"
    int64_t origin = 0;   ///< on rank 0's clock
    int64_t to_root = 0;  ///< rank 0's clock minus this rank's
  };
  /// `map` has the names of the communicators.
  TraceText(Rank rank, const FlightMap& map) : rank_(std::move(rank)), map_(map) {}

  /// Adds the lines of what happened to `out`, before them names that are new.
  void append(const Timeline::Events& events, const std::vector<TraceStage>& stages,
              std::string& out);
  /// Adds what is to be known of the whole part: events that are missing. The last line, without
  /// a comma.
  void append_end(int64_t dropped, std::string& out) const;

 private:
  void append_names(std::string& out);
  void append_thread(int thread, const std::string& name, int place, std::string& out) const;
  void append(const TraceSpan& span, std::string& out) const;
  void append(const TraceExchange& exchange, std::string& out) const;
  void append(const TraceStage& stage, std::string& out) const;
  int64_t time(int64_t host) const { return host + rank_.to_root - rank_.origin; }
  /// The thread of a group: groups of one name share it.
  int thread_of(int32_t group) const;
  const char* name_of_group(int32_t group) const;

  Rank rank_;
  const FlightMap& map_;
  int32_t named_ = -1;  // groups, -1: nothing yet
};

}  // namespace tessera
