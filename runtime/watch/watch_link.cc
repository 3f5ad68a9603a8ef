#include "runtime/watch/watch_link.h"

#include <utility>

#include "kernels/core/error.h"

namespace tessera {

namespace {

constexpr int64_t kSecond = 1'000'000'000;
// An address that does not answer: the next one is tried.
constexpr int64_t kPatience = 3 * kSecond;

}  // namespace

WatchLink::WatchLink(Target target, int64_t now) : target_(std::move(target)), since_(now) {
  connect(now);
}

void WatchLink::connect(int64_t now) {
  connected_ = now;
  answered_ = false;
  if (target_.addresses.empty()) return;
  const std::string& address = target_.addresses[next_address_ % target_.addresses.size()];
  Descriptor made = connect_to(address, target_.port);
  if (!made.open()) {
    ++next_address_;
    return;
  }
  socket_ = WatchSocket(std::move(made));
  socket_.send(frame_of(WatchMessage::kHello, target_.hello));
}

void WatchLink::take_orders(int64_t now) {
  for (const Frame& frame : socket_.receive()) {
    const auto order = body_of<WatchOrder>(frame);
    if (frame.kind != WatchMessage::kOrder || !order) continue;
    heard_ = now;
    answered_ = true;
    if (order_ != *order) reported_ = false;
    order_ = *order;
  }
}

WatchOrder WatchLink::tick(const HeartbeatBody& own, const ReportMaker& report, int64_t now) {
  take_orders(now);
  const bool stuck = !answered_ && now - connected_ > kPatience;
  if (!socket_.open() || stuck) {
    if (now - connected_ > kSecond / 2) {
      if (!answered_) ++next_address_;
      socket_.close();
      connect(now);
    }
    return order_;
  }
  if (!answered_) {
    socket_.flush();
    return order_;
  }
  if (now - told_ >= kSecond || own.concern != told_concern_) {
    told_ = now;
    told_concern_ = own.concern;
    socket_.send(frame_of(WatchMessage::kHeartbeat, own));
  }
  if (order_ == WatchOrder::kReport && !std::exchange(reported_, true)) {
    socket_.send(frame(WatchMessage::kReport, bytes_of(report())));
  }
  socket_.flush();
  return order_;
}

void WatchLink::leave() {
  if (answered_) socket_.send(frame(WatchMessage::kBye, ""));
}

double WatchLink::silence(int64_t now) const {
  return 1e-9 * static_cast<double>(now - (heard_ > 0 ? heard_ : since_));
}

void WatchLink::forgive(int64_t now) {
  if (heard_ > 0) heard_ = now;
  since_ = now;
}

std::string WatchLink::addresses() const {
  std::string text;
  for (const std::string& one : target_.addresses) text += (text.empty() ? "" : ", ") + one;
  return concat(text, " port ", target_.port);
}

}  // namespace tessera
