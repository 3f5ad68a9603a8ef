#include "runtime/watch/watch_server.h"

#include <sys/resource.h>

#include <exception>
#include <optional>
#include <utility>

namespace tessera {

namespace {

constexpr int64_t kSecond = 1'000'000'000;
// Strangers that say nothing must not use up our descriptors.
constexpr size_t kStrangers = 64;

void allow_many_descriptors() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

WatchServer::WatchServer() : listening_(listen_anywhere()) {
  allow_many_descriptors();
}

void WatchServer::begin(const Job& job, int64_t now) {
  job_ = job;
  monitor_.emplace(job.ranks, job.limits, now);
}

std::vector<int> WatchServer::descriptors() const {
  std::vector<int> all{listening_.number()};
  for (const Peer& peer : peers_) {
    if (peer.socket.open()) all.push_back(peer.socket.descriptor());
  }
  return all;
}

void WatchServer::take(Peer& peer, const Frame& frame, int64_t now) {
  if (peer.rank < 0) {
    const auto hello = body_of<HelloBody>(frame);
    const bool ours = frame.kind == WatchMessage::kHello && hello && hello->cookie == job_.cookie &&
                      hello->ranks == job_.ranks && hello->rank > 0 && hello->rank < job_.ranks;
    if (!ours) return peer.socket.close();
    peer.rank = hello->rank;
    // At once, so that its lease begins.
    peer.socket.send(frame_of(WatchMessage::kOrder, order_));
    return;
  }
  if (frame.kind == WatchMessage::kHeartbeat) {
    if (const auto body = body_of<HeartbeatBody>(frame)) monitor_->hear(peer.rank, *body, now);
  } else if (frame.kind == WatchMessage::kReport) {
    try {
      RankReport report = report_from(frame.body);
      report.rank = peer.rank;
      monitor_->hear(report);
    } catch (const std::exception&) {
      peer.socket.close();
    }
  } else if (frame.kind == WatchMessage::kBye) {
    monitor_->leave(peer.rank);
  }
}

WatchOrder WatchServer::tick(const HeartbeatBody& own, const ReportMaker& report, int64_t now,
                             MonitorNews& news) {
  size_t strangers = 0;
  for (const Peer& peer : peers_) strangers += peer.rank < 0 ? 1 : 0;
  for (Descriptor next = accept_from(listening_); next.open(); next = accept_from(listening_)) {
    if (++strangers > kStrangers + static_cast<size_t>(job_.ranks)) break;
    peers_.push_back({WatchSocket(std::move(next)), -1});
  }
  for (Peer& peer : peers_) {
    for (const Frame& frame : peer.socket.receive()) take(peer, frame, now);
  }
  std::erase_if(peers_, [](const Peer& peer) { return !peer.socket.open(); });
  monitor_->hear(0, own, now);
  if (order_ == WatchOrder::kReport) monitor_->hear(report());
  const WatchOrder order = monitor_->tick(now, news);
  const bool changed = order != std::exchange(order_, order);
  if (changed || now - told_ >= kSecond) {
    told_ = now;
    for (Peer& peer : peers_) {
      if (peer.rank >= 0) peer.socket.send(frame_of(WatchMessage::kOrder, order));
    }
  }
  for (Peer& peer : peers_) peer.socket.flush();
  return order;
}

}  // namespace tessera
