#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/watch/watch_server.h"
#include "runtime/watch/watch_socket.h"

namespace tessera {

/// A rank's watcher towards that of rank 0: connects, and again when the connection breaks.
class WatchLink {
 public:
  struct Target {
    std::vector<std::string> addresses;  ///< of rank 0's host; tried in this order, again and again
    int port = 0;
    HelloBody hello{};
  };

  WatchLink(Target target, int64_t now);

  /// Tells how the rank is, once a second and when its concern changes, and what is asked for. The
  /// last order that came.
  WatchOrder tick(const HeartbeatBody& own, const ReportMaker& report, int64_t now);
  /// The rank has ended in order, or has nothing more to write down.
  void leave();
  /// Seconds since anything came from rank 0.
  double silence(int64_t now) const;
  bool ever_heard() const { return heard_ > 0; }
  /// This host was asleep: silence up to now means nothing.
  void forgive(int64_t now);
  int descriptor() const { return socket_.descriptor(); }
  bool has_unsent() const { return socket_.has_unsent(); }
  std::string addresses() const;

 private:
  void connect(int64_t now);
  void take_orders(int64_t now);

  Target target_;
  WatchSocket socket_;
  size_t next_address_ = 0;
  int64_t connected_ = 0;  ///< when the attempt began
  bool answered_ = false;  ///< on this connection
  int64_t heard_ = 0;
  int64_t since_;
  int64_t told_ = 0;
  Concern told_concern_ = Concern::kNone;
  bool reported_ = false;
  WatchOrder order_ = WatchOrder::kGoOn;
};

}  // namespace tessera
