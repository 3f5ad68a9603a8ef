#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "runtime/watch/monitor.h"
#include "runtime/watch/watch_socket.h"

namespace tessera {

/// Makes the report of the rank that asks.
using ReportMaker = std::function<RankReport()>;

/// The watcher of rank 0 towards the others: takes their connections, and is told by the monitor
/// what they are to do.
class WatchServer {
 public:
  struct Job {
    int ranks = 1;
    uint64_t cookie = 0;
    WatchLimits limits = {};
  };

  /// Listens.
  WatchServer();
  int port() const { return port_of(listening_); }
  void begin(const Job& job, int64_t now);

  /// Takes what has come, also of rank 0 itself, and sends orders once a second. Returns the order
  /// for rank 0. Adds to the news.
  WatchOrder tick(const HeartbeatBody& own, const ReportMaker& report, int64_t now,
                  MonitorNews& news);
  /// As WatchLink::leave, of rank 0 itself.
  void leave() { monitor_->leave(0); }
  void forgive(int64_t now) { monitor_->forgive(now); }
  /// Descriptors to wait for.
  std::vector<int> descriptors() const;

 private:
  struct Peer {
    WatchSocket socket;
    int rank = -1;
  };

  void take(Peer& peer, const Frame& frame, int64_t now);

  Descriptor listening_;
  std::vector<Peer> peers_;
  Job job_;
  std::optional<Monitor> monitor_;
  int64_t told_ = 0;
  WatchOrder order_ = WatchOrder::kGoOn;
};

}  // namespace tessera
