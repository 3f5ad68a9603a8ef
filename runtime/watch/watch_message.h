#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "runtime/watch/rank_report.h"

namespace tessera {

// What the watchers of the ranks and that of rank 0 tell each other, over TCP. All are the same
// program, so plain structs travel; lengths are checked, as anybody may connect.

enum class WatchMessage : uint32_t {
  kHello = 1,  ///< the first: who it is
  kHeartbeat,  ///< once a second: HeartbeatBody
  kReport,     ///< on demand: a RankReport, as bytes
  kBye,        ///< the rank has ended in order, or all is written down
  kOrder,      ///< from rank 0, once a second: WatchOrder
};

/// What rank 0's watcher wants of the others.
enum class WatchOrder : int32_t {
  kGoOn,
  kReport,     ///< tell what you know
  kWriteDown,  ///< and write it down, then say kBye
  kEnd,        ///< end your rank
};

struct HelloBody {
  uint64_t cookie;  ///< known to the ranks of this job only
  int32_t rank;
  int32_t ranks;
};

struct HeartbeatBody {
  int64_t now;  ///< the sender's clock
  Concern concern;
  int32_t unused;
  FlightState state;
};

struct Frame {
  WatchMessage kind;
  std::string body;
};

/// Takes a stream of bytes apart.
class FrameReader {
 public:
  void add(std::string_view bytes) { bytes_ += bytes; }
  /// The next whole frame. Throws kError when the stream is none of ours.
  std::optional<Frame> next();

 private:
  std::string bytes_;
};

/// A frame on its way.
std::string frame(WatchMessage kind, std::string_view body);
/// As above, for a plain struct.
template <class Body>
std::string frame_of(WatchMessage kind, const Body& body) {
  return frame(kind, {reinterpret_cast<const char*>(&body), sizeof body});
}
/// The body of a frame as a plain struct; nothing when it has another length.
template <class Body>
std::optional<Body> body_of(const Frame& frame) {
  if (frame.body.size() != sizeof(Body)) return std::nullopt;
  Body body;
  frame.body.copy(reinterpret_cast<char*>(&body), sizeof body);
  return body;
}

std::string bytes_of(const RankReport& report);
/// Throws kError when they are no report.
RankReport report_from(std::string_view bytes);

}  // namespace tessera
